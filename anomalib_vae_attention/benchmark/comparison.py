"""Running a comparison: first the cells, then the latencies of their models, category by category."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anomalib_vae_attention.common.mvtec_layout import TEST, list_images

from .jobs import DONE, RESULT, run_job
from .plan import BACKBONE, BATCHES, CUDA, GPU_BATCHES, Cell

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Has glibc give freed tensors back to the system. PatchCore's greedy choice makes new vectors per centre and keeps a
small tensor between them, which breaks the heap into pieces: 400 centres among 200,000 cells left 4.4 GiB behind."""
IMAGES = 32
"""Most test images that latencies are measured on."""


def prepare_weights(output: Path, cells: Sequence[Cell]) -> dict[str, str]:
    """Check backbone, layers and models of the cells, and lay the packaged weights out for anomalib's own models.

    In a process of its own, because it imports torch.

    Returns:
        Environment variables with which packaged weights are found; timm finds or downloads others by itself.

    Raises:
        ValueError: If there is no such backbone, layer or model, or no GPU where one is asked for.
    """
    cache = (output / "weights").resolve()
    layers = dict.fromkeys(layer for cell in cells for layer in cell.layers)
    models = dict.fromkeys(cell.model for cell in cells if cell.model != BACKBONE)
    checked = ["--accelerator", cells[0].accelerator, "--backbone", cells[0].backbone]
    checked += ["--layers", *layers, "--models", *models]
    process = subprocess.run(  # noqa: S603 - this Python, this package
        [sys.executable, "-m", f"{__package__}.weights", cache, *checked], capture_output=True, text=True, check=False
    )
    if process.returncode != 0:
        raise ValueError((process.stderr.strip().splitlines() or ["the weights could not be written"])[-1])
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"} if process.stdout.strip() else {}


def forget_results(cells: Sequence[Cell], output: Path, models: Sequence[str]) -> None:
    """Forget results of some models, and all latencies, so that they are measured again.

    A model's name without a variant or layers stands for all of them.
    """
    for cell in cells:
        if {cell.label, cell.model, cell.model.partition(":")[0]} & set(models):
            (output / "cells" / cell.key / RESULT).unlink(missing_ok=True)
    if models:
        shutil.rmtree(output / "latency", ignore_errors=True)


def run_cells(cells: Sequence[Cell], output: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Run the cells that are not done, one after the other, with some environment variables; return their results."""
    results = []
    for index, cell in enumerate(cells, start=1):
        title, wanted = f"[{index}/{len(cells)}] {cell}", ("cell.json", asdict(cell))
        its_own = {**environment, **GIVE_BACK} if cell.model.startswith("patchcore") else environment
        results.append(run_job("cell", output / "cells" / cell.key, wanted, its_own, title))
    return results


def run_latencies(
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any]],
    output: Path,
    environment: dict[str, str],
    runtimes: Sequence[str],
    threads: int,
) -> list[dict[str, Any]]:
    """Measure the latencies of the models that were kept, in one process per category and runtime.

    For each of these there is ``category``, ``runtime`` and either ``latency`` or ``error``.
    """
    kept: dict[str, list[tuple[Cell, dict[str, Any]]]] = {}
    for cell, result in zip(cells, results, strict=True):
        if cell.keep and result["status"] == DONE:
            kept.setdefault(cell.category, []).append((cell, result))
    jobs = [(category, runtime) for category in kept for runtime in runtimes]
    measured = []
    for index, (category, runtime) in enumerate(jobs, start=1):
        (first, result), folder = kept[category][0], Path(kept[category][0][0].folder)
        files = list_images(folder / TEST)
        wanted = {
            "runtime": runtime,
            "models": {cell.label: str((output / "cells" / cell.key).resolve()) for cell, _ in kept[category]},
            # Evenly over all kinds of defects, and good ones.
            "images": [str(file) for file in files[:: max(1, len(files) // IMAGES)][:IMAGES]],
            "input_size": result["input_size"],
            "batches": GPU_BATCHES if runtime.startswith(CUDA) else BATCHES,
            "threads": threads,
        }
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:8]
        place = output / "latency" / f"{folder.name}-{runtime}-{digest}"
        title = f"[latency {index}/{len(jobs)}] {runtime} on {first.category}"
        found = run_job("latency", place, ("wanted.json", wanted), environment, title)
        measured.append({"category": category, "runtime": runtime, **found})
    return measured

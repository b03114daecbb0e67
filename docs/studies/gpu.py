"""What only a GPU can show: ``python docs/studies/gpu.py --data_root DATA --category FOLDER``.

The tests that need one, then ``vae-attention benchmark --accelerator gpu``, then where the time goes. Each step is a
process with a time limit; one that fails prints the end of its log, and the others go on. Five minutes are enough for
tests and benchmark; ``--steps`` and ``--minutes`` choose others. Left in the folder of the
results: ``gpu.csv``, the one table, ``gpu.txt``, all that was printed, and the log of each step. ``--accelerator cpu``
tries the script itself.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from anomalib_vae_attention.benchmark.jobs import DONE, RESULT
from anomalib_vae_attention.benchmark.models import load_model
from anomalib_vae_attention.benchmark.plan import GPU_BATCHES, GPU_RUNTIMES, read_cell
from anomalib_vae_attention.benchmark.tables import ON_GPU, cells_table, latency_table
from anomalib_vae_attention.common.atomic_files import read_json
from anomalib_vae_attention.common.machine import describe_machine

ROOT = Path(__file__).parents[2]
PEERS = ["padim", "patchcore:0.01"]
COLUMNS = ["model", "runtime", "measured", "calls", "median_ms", "images_per_second", *ON_GPU, "error"]
REPEATS = 30
"""Calls that a time is the mean of, in the profile."""


class Step(NamedTuple):
    """A command with the seconds that it may take, and how many of the last lines of its log are shown."""

    name: str
    command: list[str]
    seconds: float
    lines: int


def plan_steps(parsed: argparse.Namespace) -> list[Step]:
    """List the steps in the order of their worth."""
    tests = [
        sys.executable,
        "-m",
        "pytest",
        *["-n", "0", "-v", "-rP", "--tb=short", "-m", "gpu", "-p", "no:cacheprovider"],
    ]
    tests += ["tests/test_gpu.py", "tests/studies/test_stacked.py"]
    fast = [name for name in GPU_RUNTIMES if "compile" not in name]
    command = [sys.executable, "-c", "import sys; from anomalib_vae_attention.cli import main; sys.exit(main())"]
    command += ["benchmark", "--data_root", str(parsed.data_root), "--categories", parsed.category]
    command += ["--accelerator", parsed.accelerator, "--output", str(parsed.output / "benchmark"), "--models"]
    command += ["vae_attention"]
    if parsed.accelerator == "cpu":
        quick = [*tests, "-k", "thresholds or vaes or dsprites"]
        return [Step("tests", quick, 900, 60), Step("benchmark", [*command, "--runtimes", "eager"], 900, 60)]
    peers = [*command, *PEERS, "--runtimes", "cuda"]
    return [
        Step("tests", [*tests, "-k", "not compile"], 150, 80),
        Step("benchmark", [*command, "--runtimes", *fast], 200, 100),
        Step("profile", [sys.executable, __file__, "--profile", str(parsed.output / "benchmark" / "cells")], 60, 150),
        Step("compile", [*command, "--runtimes", *GPU_RUNTIMES], 200, 100),
        Step("compile-tests", [*tests, "-k", "compile"], 90, 60),
        Step("peers", peers, 120, 60),
    ]


def run_step(step: Step, folder: Path, left: float, environment: dict[str, str]) -> str:
    """Run a step for as long as it may and there is time left; return how it ended and the end of its log."""
    limit = min(step.seconds, left)
    if limit < 10:
        return f"=== {step.name}: left out, no time"
    log, start = folder / f"{step.name}.log", time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(step.command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            end = f"exit code {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            # Its own processes end with it where they are asked politely.
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
            end = f"stopped at its limit of {limit:.0f} s"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-step.lines :]
    return "\n".join([f"=== {step.name}: {end}, {time.monotonic() - start:.0f} s", *lines])


def failed_jobs(output: Path) -> list[str]:
    """Return the ends of the logs of the benchmark's jobs that did not finish."""
    ends = []
    for log in sorted((output / "benchmark").glob("*/*/log.txt")):
        result = read_json(log.with_name(RESULT))
        if not result or result["status"] != DONE:
            ends += [f"--- {log.parent.name}", *log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]]
    return ends


def finished(output: Path, wanted: str) -> list[tuple[Any, Any]]:
    """Pair what the benchmark's jobs were to do, in files of a name, with what those that are done have found."""
    pairs = [(read_json(file), read_json(file.with_name(RESULT))) for file in output.glob(f"benchmark/*/*/{wanted}")]
    return [pair for pair in pairs if all(pair)]


def make_tables(output: Path) -> list[str]:
    """Write ``gpu.csv``, and what fits cost, of all jobs that are done, whether or not the command ended; as text."""
    tables = {}
    cells = [(read_cell(cell), result) for cell, result in finished(output, "cell.json")]
    if cells:
        tables["fits"] = cells_table(*zip(*cells, strict=True)).drop(columns=["category", "seed", "log"])
    measured = [
        {"category": "", "runtime": wanted["runtime"], **result} for wanted, result in finished(output, "wanted.json")
    ]
    if measured:
        tables["gpu"] = latency_table(measured)[COLUMNS].sort_values(["model", "measured", "runtime"])
    for name, table in tables.items():
        table.to_csv(output / f"{name}.csv", index=False)
    return [table.dropna(axis=1, how="all").round(5).to_string(index=False, na_rep="-") for table in tables.values()]


def milliseconds(call: Callable[[], object]) -> float:
    """Return the mean time of a function on the GPU, as a CUDA graph, in milliseconds."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        call()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    first.record()
    for _ in range(REPEATS):
        graph.replay()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / REPEATS


@torch.inference_mode()
def profile(cells: Path) -> None:
    """Print where the time of the fitted model goes, kernel by kernel and part by part."""
    file = next(cells.glob("*-vae_attention-*/cell.json"))
    model: Any = load_model(read_cell(read_json(file)), file.with_name("model.ckpt")).cuda()
    whole, extractor = model.model, model.model.backbone.extractor
    # As the model itself has it, for its parts.
    torch.backends.cudnn.allow_tf32 = False
    for batch in GPU_BATCHES:
        image = torch.rand(batch, 3, 256, 256, device="cuda")
        layers = whole.layers(image)
        features = whole.grid(layers)
        posterior, _ = whole.posterior(features)
        parts: dict[str, Callable[[], object]] = {
            "whole, with pre- and post-processing": partial(model, image),
            "torch model": partial(whole, image),
            "backbone": partial(whole.backbone, image),
            "grid": partial(whole.grid, layers),
            "posterior": partial(whole.posterior, features),
            "match": partial(whole.reference.match, posterior),
        }
        for name, call in parts.items():
            print(f"batch {batch}, {name}: {milliseconds(call):.3f} ms", flush=True)
        for layout in (torch.channels_last, torch.contiguous_format):
            for dtype in (torch.float32, torch.float16):
                extractor.to(dtype, memory_format=layout)
                given = image.to(dtype, memory_format=layout)
                took = milliseconds(partial(extractor, given))
                print(f"batch {batch}, backbone, {layout}, {dtype}: {took:.3f} ms", flush=True)
        extractor.to(torch.float32, memory_format=torch.contiguous_format)
    for batch in (1, 64):
        image = torch.rand(batch, 3, 256, 256, device="cuda")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            whole(image)
            torch.cuda.synchronize()
        found = seen.key_averages()
        print(f"batch {batch}: {sum(one.count for one in found)} kernels and copies")
        print(found.table(sort_by="self_device_time_total", row_limit=20, max_name_column_width=70))


def main(arguments: list[str] | None = None) -> int:
    """Run the steps and print the table.

    Args:
        arguments: Those of the command line by default.

    Returns:
        0; 1 if a test failed or a step did not end well.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, default=Path("datasets"), help="folder of all data (datasets)")
    parser.add_argument("--category", default="mvtec_ad/bottle", help="category below it (mvtec_ad/bottle)")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--minutes", type=float, default=5.0, help="time in all (5)")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="tests, benchmark, profile, compile ... (all)")
    parser.add_argument("--output", type=Path, default=Path("results/gpu"), help="folder (results/gpu)")
    parser.add_argument("--profile", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.profile:
        profile(parsed.profile)
        return 0
    if parsed.accelerator == "gpu" and not torch.cuda.is_available():
        parser.error("accelerator: PyTorch finds no CUDA device")
    parsed.data_root, parsed.output = parsed.data_root.resolve(), parsed.output.resolve()
    parsed.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * parsed.minutes
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"VAE_ATTENTION_DATA": str(parsed.data_root), "VAE_ATTENTION_ACCELERATOR": parsed.accelerator}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    texts = [f"{card}; CUDA {torch.version.cuda}; {describe_machine()}"]
    print(texts[0], flush=True)
    for step in plan_steps(parsed):
        if parsed.steps and step.name not in parsed.steps:
            continue
        texts.append(run_step(step, parsed.output, end - time.monotonic(), environment))
        print(texts[-1], flush=True)
    texts += failed_jobs(parsed.output)
    texts += make_tables(parsed.output)
    ends = [text.splitlines()[0] for text in texts if text.startswith("===")]
    (parsed.output / "gpu.txt").write_text("\n".join(texts), encoding="utf-8")
    print("\n".join([*texts[1 + len(ends) :], *ends]))
    return int(any("exit code 0" not in one for one in ends))


if __name__ == "__main__":
    raise SystemExit(main())

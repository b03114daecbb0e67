"""Results as tables: a row a cell, a row a latency, and the medians over the seeds."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from .plan import BACKBONE, Cell

SCORES = ["image_AUROC", "pixel_AUROC", "pixel_AUPRO", "image_AP", "pixel_AP", "image_F1", "pixel_F1"]
COSTS = ["fit_seconds", "memory_before_mib", "memory_peak_mib", "memory_fit_mib"]
SIZES = ["checkpoint_mib", "onnx_mib", "openvino_mib"]
LATENCY_COLUMNS = [
    "category",
    "model",
    "runtime",
    "measured",
    "median_ms",
    "q25_ms",
    "q75_ms",
    "calls",
    "images_per_second",
    "ratio_to_backbone",
    "error",
]


def cells_table(cells: Sequence[Cell], results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Make a row of every cell.

    Args:
        cells: The cells.
        results: The result of each, done or failed.

    Returns:
        Category, model, seed, status; scores in [0, 1]; seconds, MiB (``memory_fit_mib`` is the peak of the fit beyond
        what the process had needed before it); error and log of what failed.
    """
    rows = []
    for cell, result in zip(cells, results, strict=True):
        row: dict[str, Any] = {"category": cell.category, "model": cell.model, "seed": cell.seed}
        row |= {name: result.get(name) for name in ("status", "train_images", "test_images", *SCORES, *COSTS[:3])}
        if result.get("memory_peak_mib") is not None:
            row["memory_fit_mib"] = result["memory_peak_mib"] - result["memory_before_mib"]
        for name in SIZES:
            size = result.get(name.replace("_mib", "_bytes"))
            row[name] = None if size is None else size / 2**20
        row["error"] = result.get("error") or result.get("export_error")
        row["log"] = result.get("log")
        rows.append(row)
    columns = ["category", "model", "seed", "status", "train_images", "test_images"]
    frame = pd.DataFrame(rows, columns=[*columns, *SCORES, *COSTS, *SIZES, "error", "log"])
    numbers = [*SCORES, *COSTS, *SIZES]
    return frame.astype(dict.fromkeys(numbers, float))


def latency_table(measured: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Make a row of every category, runtime, model and way of giving it images.

    Args:
        measured: What :func:`.comparison.run_latencies` returns.

    Returns:
        ``measured`` is ``"batch 1"``, ``"batch 16"`` or ``"file"`` (one image, its file read and decoded each time);
        milliseconds a call, median and quartiles; images a second; the median over the bare backbone's in the same
        runtime; the error of what could not be measured.
    """
    rows = []
    for job in measured:
        for model, ways in job.get("latency", {}).items():
            for way, summary in ways.items():
                limit = job["latency"].get(BACKBONE, {}).get(way, {}).get("median_ms")
                rows.append(_latency_row(job, model, way, summary, limit))
        if "latency" not in job:
            rows.append({"category": job["category"], "runtime": job["runtime"], "error": job["error"]})
    return pd.DataFrame(rows, columns=LATENCY_COLUMNS)


def _latency_row(
    job: dict[str, Any],
    model: str,
    way: str,
    summary: dict[str, Any],
    limit: float | None,
) -> dict[str, Any]:
    row = {"category": job["category"], "model": model, "runtime": job["runtime"], "measured": way, **summary}
    median = summary.get("median_ms")
    if median:
        images = int(way.removeprefix("batch ")) if way.startswith("batch") else 1
        row["images_per_second"] = 1000 * images / median
        row["ratio_to_backbone"] = median / limit if limit else None
    return row


def summary_table(cells: pd.DataFrame, latencies: pd.DataFrame) -> pd.DataFrame:
    """Put one line together of every category and model.

    Args:
        cells: Table of the cells.
        latencies: Table of the latencies.

    Returns:
        Medians over the seeds that were done, in the order of the cells; the number of ``seeds``; for every runtime
        ``<runtime>_ms``, ``<runtime>_ratio`` to the bare backbone at batch 1, and ``<runtime>_per_second`` at batch 16.
    """
    done = cells[cells["status"] == "done"]
    keys = ["category", "model"]
    grouped = done.groupby(keys, sort=False)
    summary = grouped[[*SCORES, *COSTS, *SIZES]].median()
    summary.insert(0, "seeds", grouped.size())
    ways = [("batch 1", "median_ms", "ms"), ("batch 1", "ratio_to_backbone", "ratio")]
    for runtime in latencies["runtime"].unique():
        for way, column, name in [*ways, ("batch 16", "images_per_second", "per_second")]:
            rows = latencies[(latencies["runtime"] == runtime) & (latencies["measured"] == way)]
            summary[f"{runtime}_{name}"] = rows.set_index(keys)[column].astype(float)
    return summary.reset_index()

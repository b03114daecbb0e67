"""Results as tables: per cell, per latency, medians over the seeds, ours beside the better peer, and mean ranks."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from anomalib_vae_attention.common.measures import MAIN, MEASURES

from .jobs import DONE
from .plan import BACKBONE, OURS, Cell

COSTS = {
    "fit_seconds": "fit, s",
    "memory_fit_mib": "memory of the fit, MiB",
    "memory_peak_mib": "peak of the process, MiB",
    "gpu_fit_mib": "GPU memory of the fit, MiB",
    "checkpoint_mib": "checkpoint, MiB",
    "onnx_mib": "ONNX, MiB",
    "openvino_mib": "OpenVINO, MiB",
}
"""Name and label of each cost; ``memory_fit_mib`` is the peak beyond what the process had needed before the fit."""
KEYS = ["category", "model"]
TIMES = ["median_ms", "q25_ms", "q75_ms", "calls", "images_per_second", "ratio_to_backbone"]
ON_GPU = ["mean_ms", "gpu_mib", "score_difference", "map_difference"]
"""What is measured on a GPU only: the mean, GPU memory, and the most that scores and maps differ by from the CPU's."""


def cells_table(cells: Sequence[Cell], results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Make a row per cell, from its result, done or not.

    Its columns are category, model, seed, status, numbers of images, measures, costs; error and log of what failed.
    """
    rows = [
        {
            "category": cell.category,
            "model": cell.label,
            "seed": cell.seed,
            **result,
            "error": result.get("error") or result.get("export_error"),
        }
        for cell, result in zip(cells, results, strict=True)
    ]
    numbers = [*MEASURES, "memory_before_mib", *COSTS]
    counts = ["train_images", "test_images"]
    frame = pd.DataFrame(rows, columns=[*KEYS, "seed", "status", *counts, *numbers, "error", "log"])
    frame = frame.astype(dict.fromkeys(numbers, float))
    return frame.assign(memory_fit_mib=frame["memory_peak_mib"] - frame["memory_before_mib"])


def latency_table(measured: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Make a row per category, runtime, model and way of giving it images, from what ``run_latencies`` returns.

    Returns:
        ``measured`` is ``"batch 1"``, ``"batch 16"`` or ``"file"`` (one image, its file read and decoded each time);
        milliseconds per call, median and quartiles; images per second; the median over the bare backbone's in the same
        runtime; :data:`ON_GPU`; the error of what could not be measured.
    """
    rows: list[dict[str, Any]] = []
    for job in measured:
        place = {"category": job["category"], "runtime": job["runtime"]}
        if "latency" not in job:
            rows.append({**place, "error": job["error"]})
        for model, ways in job.get("latency", {}).items():
            rows += [{**place, "model": model, "measured": way, **summary} for way, summary in ways.items()]
    frame = pd.DataFrame(rows, columns=["category", "model", "runtime", "measured", *TIMES, *ON_GPU, "error"])
    frame = frame.astype(dict.fromkeys([*TIMES, *ON_GPU], float))
    images = frame["measured"].astype(str).str.removeprefix("batch ").replace("file", "1").astype(float)
    limits = frame["median_ms"].where(frame["model"] == BACKBONE)
    limits = limits.groupby([frame["category"], frame["runtime"], frame["measured"]]).transform("max")
    return frame.assign(
        images_per_second=1000 * images / frame["median_ms"], ratio_to_backbone=frame["median_ms"] / limits
    )


def summary_table(cells: pd.DataFrame, latencies: pd.DataFrame) -> pd.DataFrame:
    """Put one line together per category and model, from the tables of cells and latencies.

    Returns:
        Medians over the seeds that were done, in the order of the cells; the number of ``seeds``; for every runtime
        ``<runtime>_ms``, ``<runtime>_ratio`` to the bare backbone at batch 1, and ``<runtime>_per_second`` at batch 16.
    """
    grouped = cells[cells["status"] == DONE].groupby(KEYS, sort=False)
    summary = grouped[[*MEASURES, "memory_before_mib", *COSTS]].median()
    summary.insert(0, "seeds", grouped.size())
    ways = {"ms": ("batch 1", "median_ms"), "ratio": ("batch 1", "ratio_to_backbone")}
    ways["per_second"] = ("batch 16", "images_per_second")
    for runtime in latencies["runtime"].unique():
        for name, (way, column) in ways.items():
            rows = latencies[(latencies["runtime"] == runtime) & (latencies["measured"] == way)]
            summary[f"{runtime}_{name}"] = rows.set_index(KEYS)[column]
    return summary.reset_index()


def comparison_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Put ours beside the better peer, per category, from :func:`summary_table`.

    Returns:
        A row per category and model: the main measures; ``rank_<measure>`` within the category, 1 for the best; and for
        ours ``margin_<measure>`` to the best peer. A peer that ran on several sets of layers is one row, which has the
        better of them in each measure.
    """
    models = summary[summary["model"] != BACKBONE]
    plain = models["model"].map(lambda name: name.partition("@")[0])
    is_ours = plain.map(lambda name: name.partition(":")[0] == OURS).astype(bool)
    table = models.assign(model=models["model"].where(is_ours, plain), ours=is_ours)
    table = table.groupby([*KEYS, "ours"], sort=False)[MAIN].max().reset_index("ours")
    best = table.loc[~table["ours"], MAIN].groupby("category").max().reindex(table.index.get_level_values("category"))
    margins = (table[MAIN] - best.to_numpy()).where(table["ours"])
    ranks = table.groupby("category")[MAIN].rank(ascending=False)
    return table[MAIN].join(ranks.add_prefix("rank_")).join(margins.add_prefix("margin_")).reset_index()


def ranking_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Rank the models over all categories, from :func:`comparison_table`.

    Returns:
        A row per model, the best first: number of ``categories``, mean ranks, and of ours the worst margins, the worst
        of all and ``where`` it is.
    """
    by_model = comparison.groupby("model", sort=False)
    ranks, margins = [f"rank_{name}" for name in MAIN], [f"margin_{name}" for name in MAIN]
    table = by_model[ranks].mean()
    table.insert(0, "categories", by_model.size())
    table.insert(1, "mean_rank", table[ranks].mean(axis=1))
    table = table.join(by_model[margins].min().add_prefix("worst_"))
    table["worst_margin"] = table[[f"worst_{name}" for name in margins]].min(axis=1)
    places = comparison.set_index(KEYS)[margins].min(axis=1).dropna()
    lowest = places.groupby("model").idxmin().map(lambda place: place[0])
    return table.assign(where=lowest.astype(object)).sort_values("mean_rank", kind="stable").reset_index()

"""Writing the results of a comparison: CSV and JSON tables, and one HTML page that needs no other file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anomalib_vae_attention.common.atomic_files import write_json, write_table
from anomalib_vae_attention.common.machine import describe_machine
from anomalib_vae_attention.common.measures import MAIN, MEASURES
from anomalib_vae_attention.common.pictures import heat_map, inline, outline, write_page

from .jobs import DONE
from .plan import BACKBONE, CUDA, Cell
from .tables import COSTS, KEYS, ON_GPU, cells_table, comparison_table, latency_table, ranking_table, summary_table

TEMPLATE = Path(__file__).with_name("report.html.j2")


def make_tables(
    cells: Sequence[Cell], results: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]
) -> dict[str, pd.DataFrame]:
    """Make all tables of :mod:`.tables`, by their names."""
    tables = {"cells": cells_table(cells, results), "latencies": latency_table(measured)}
    tables["summary"] = summary_table(tables["cells"], tables["latencies"])
    tables["comparison"] = comparison_table(tables["summary"])
    tables["ranking"] = ranking_table(tables["comparison"])
    return tables


def to_text(tables: dict[str, pd.DataFrame]) -> str:
    """Lay the tables out as text for the screen."""
    summary, cells, latencies = tables["summary"], tables["cells"], tables["latencies"]
    speeds = list(summary.filter(regex="_(ms|ratio|per_second)$").dropna(axis=1, how="all"))
    on_gpu = latencies["runtime"].astype(str).str.startswith(CUDA) & latencies["error"].isna()
    gpu_rows = latencies.loc[on_gpu, [*KEYS, "runtime", "measured", "calls", "images_per_second", *ON_GPU]]
    missing = latencies[latencies["error"].notna()].fillna({"model": "all"})
    grouped = missing.groupby(["category", "runtime", "error"], sort=False)["model"]
    parts = {
        "Accuracy, medians over the seeds (F1 with the threshold that is best on the test images)": summary.loc[
            summary["model"] != BACKBONE, [*KEYS, "seeds", *MEASURES]
        ].round(4),
        "Ours beside the better peer (a peer has the better of its layers in each measure)": tables["comparison"].round(
            4
        ),
        "Mean ranks over the categories, and our worst margins to the better peer": tables["ranking"].round(4),
        "Fit and sizes, seconds and MiB": summary[[*KEYS, *COSTS]].round(1),
        "Latency at batch 1 in ms and as ratio to the bare backbone; images per second at batch 16": summary[
            [*KEYS, *speeds] if speeds else []
        ].round(2),
        "On the GPU: means of the later half of the calls, and most difference from the CPU": gpu_rows.round(5),
        "Not done": cells.loc[cells["error"].notna(), [*KEYS, "seed", "status", "error"]],
        "Not measured": grouped.agg(lambda models: ", ".join(dict.fromkeys(models))).reset_index(),
    }
    shown = {title: table.dropna(axis=1, how="all") for title, table in parts.items() if not table.empty}
    return "\n\n".join(f"{title}\n{table.to_string(index=False, na_rep='-')}" for title, table in shown.items())


def write_results(
    output: Path, cells: Sequence[Cell], tables: dict[str, pd.DataFrame], description: dict[str, Any]
) -> str:
    """Write everything that a comparison leaves: CSV, JSON and HTML files.

    Args:
        output: Folder of the comparison.
        cells: The cells.
        tables: As :func:`make_tables` makes them.
        description: The ``command`` as it was given and its ``settings``, plain data.

    Returns:
        The tables as text, and where the files are.
    """
    for name, table in tables.items():
        write_table(output / f"{name}.csv", table)
    description = {**description, "machine": describe_machine()}
    # JSON has no NaN.
    records = {
        name: table.astype(object).where(table.notna(), None).to_dict("records") for name, table in tables.items()
    }
    write_json(output / "results.json", {**description, **records})
    summary, failed = tables["summary"], tables["cells"][tables["cells"]["status"] != DONE]
    write_page(
        output / "report.html",
        TEMPLATE,
        **description,
        measures=MEASURES,
        main=MAIN,
        costs=COSTS,
        accuracy=_marked(summary[summary["model"] != BACKBONE], list(MEASURES), 3),
        cost=_marked(summary, list(COSTS), 1),
        comparison=tables["comparison"],
        ranking=tables["ranking"],
        latencies=tables["latencies"].fillna({"model": "all", "measured": "", "error": ""}),
        failed=failed[[*KEYS, "seed", "status", "error", "log"]].fillna("").to_dict("records"),
        examples=_example_rows(cells, output),
        number=lambda value, digits: "-" if pd.isna(value) else f"{value:,.{digits}f}",
    )
    files = ", ".join([*(f"{name}.csv" for name in tables), "results.json"])
    return f"{to_text(tables)}\n\nReport: {(output / 'report.html').resolve()}\nBeside it: {files}"


def _marked(frame: pd.DataFrame, columns: Sequence[str], digits: int) -> pd.DataFrame:
    """Round some columns, and mark the best model of each category in ``<column>_best``; the backbone takes no part."""
    frame = frame[[*KEYS, *columns]].round(dict.fromkeys(columns, digits))
    for name in columns:
        compared = frame[name].where(frame["model"] != BACKBONE)
        by_category = compared.groupby(frame["category"])
        best = by_category.transform("max" if name in MEASURES else "min")
        frame[f"{name}_best"] = (compared == best) & (by_category.transform("count") > 1)
    return frame


def _example_rows(cells: Sequence[Cell], output: Path) -> list[dict[str, Any]]:
    """Lay the example maps of all models of a category side by side, those of the first seed."""
    groups: dict[str, dict[str, Any]] = {}
    for cell in cells:
        file = output / "cells" / cell.key / "examples.npz"
        if cell.seed != cells[0].seed or not file.exists():
            continue
        with np.load(file) as loaded:
            stored = dict(loaded)
        group = groups.setdefault(cell.category, {"category": cell.category, "models": [], "rows": []})
        if not group["rows"]:
            group["rows"] = [
                {"name": "/".join(Path(str(path)).parts[-2:]), "images": [inline(image), inline(outline(image, mask))]}
                for path, image, mask in zip(stored["path"], stored["image"], stored["mask"], strict=True)
            ]
        group["models"].append(cell.label)
        limits = (float(stored["range"][0]), float(stored["range"][1]))
        for row, values in zip(group["rows"], stored["map"], strict=True):
            row["images"].append(inline(heat_map(values, limits)))
    return list(groups.values())

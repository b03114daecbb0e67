"""Writing the results of a comparison: tables, plots and report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_vae_attention.common.atomic_files import replacing, write_json
from anomalib_vae_attention.common.machine import describe_machine

from .plan import BACKBONE, Cell
from .plots import accuracy_plot
from .report import ACCURACY, write_report
from .tables import cells_table, latency_table, summary_table


def _to_screen(summary: pd.DataFrame, cells: pd.DataFrame, latencies: pd.DataFrame) -> str:
    """Lay the tables out as text."""
    keys = ["category", "model"]
    models = summary[summary["model"] != BACKBONE]
    parts = [
        "Accuracy, medians over the seeds (F1 with the threshold that is best on the test images)",
        models[[*keys, "seeds", *ACCURACY]].round(4).to_string(index=False),
        "\nFit and sizes, seconds and MiB",
        summary[
            [*keys, "fit_seconds", "memory_fit_mib", "memory_peak_mib", "checkpoint_mib", "onnx_mib", "openvino_mib"]
        ]
        .round(1)
        .to_string(index=False, na_rep="-"),
    ]
    speeds = [name for name in summary if name.endswith(("_ms", "_ratio", "_per_second"))]
    if speeds:
        parts += [
            "\nLatency at batch 1 in ms and as ratio to the bare backbone; images a second at batch 16",
            summary[[*keys, *speeds]].dropna(axis=1, how="all").round(2).to_string(index=False, na_rep="-"),
        ]
    failed = cells[cells["error"].notna()][[*keys, "seed", "status", "error"]]
    if len(failed):
        parts += ["\nFailed", failed.to_string(index=False)]
    missing = latencies[latencies["error"].notna()].fillna({"model": "all"})
    if len(missing):
        grouped = missing.groupby(["category", "runtime", "error"], sort=False)["model"]
        listed = grouped.agg(lambda models: ", ".join(dict.fromkeys(models))).reset_index()
        parts += ["\nNot measured", listed.to_string(index=False)]
    return "\n".join(parts)


def write_results(
    output: Path,
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any]],
    measured: Sequence[dict[str, Any]],
    command: str,
    settings: dict[str, Any],
) -> str:
    """Write everything that a comparison leaves: CSV, JSON, PNG and HTML files.

    Args:
        output: Folder of the comparison.
        cells: The cells.
        results: The result of each cell.
        measured: The latencies, as :func:`.comparison.run_latencies` returns them.
        command: The command as it was given.
        settings: Its arguments, plain data.

    Returns:
        The tables as text, and where the files are.
    """
    tables = {"cells": cells_table(cells, results), "latencies": latency_table(measured)}
    tables["summary"] = summary_table(tables["cells"], tables["latencies"])
    for name, table in tables.items():
        with replacing(output / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    description = {"command": command, "settings": settings, "machine": describe_machine()}
    # JSON has no NaN.
    records = {
        name: table.astype(object).where(table.notna(), None).to_dict("records") for name, table in tables.items()
    }
    write_json(output / "results.json", {**description, **records})
    plots = {}
    for runtime in tables["latencies"]["runtime"].unique():
        caption = f"accuracy against latency, {runtime}"
        plots[caption] = output / f"accuracy_latency_{runtime}.png"
        accuracy_plot(tables["summary"], f"{runtime}_ms", f"{runtime}, ms an image", plots[caption])
    plots["accuracy against memory"] = output / "accuracy_memory.png"
    accuracy_plot(tables["summary"], "memory_fit_mib", "memory of the fit, MiB", plots["accuracy against memory"])
    plots = {caption: plot for caption, plot in plots.items() if plot.exists()}
    write_report(output / "report.html", cells, tables, description, plots)
    text = _to_screen(tables["summary"], tables["cells"], tables["latencies"])
    files = ", ".join([*(f"{name}.csv" for name in tables), "results.json", *(plot.name for plot in plots.values())])
    return f"{text}\n\nReport: {(output / 'report.html').resolve()}\nBeside it: {files}"

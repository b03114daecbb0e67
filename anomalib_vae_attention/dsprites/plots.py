"""Plots of several runs: their course over the steps, and reconstruction against disentanglement."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from anomalib_vae_attention.common.atomic_files import replacing

from .callbacks import TEST_FILE

METRICS = {
    "factor_vae_score": "FactorVAE score",
    "mig": "MIG",
    "dci_disentanglement_lasso": "DCI disentanglement, lasso",
    "reconstruction": "reconstruction error (nats per image)",
}
"""What is plotted over the steps, by column of the table."""


def plot_courses(table: pd.DataFrame, file: Path) -> None:
    """Plot metrics over the steps, a colour a config: the mean over its seeds, and from the least to the greatest.

    Args:
        table: Columns ``config``, ``seed``, ``step`` and those of :data:`METRICS`.
        file: PNG file to write.

    Raises:
        OSError: If the file cannot be written.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 2)
    for (metric, name), axis in zip(METRICS.items(), axes.flat, strict=True):
        for config, rows in table.groupby("config", sort=False):
            steps = rows.groupby("step")[metric].agg(["mean", "min", "max"])
            axis.plot(steps.index, steps["mean"], label=f"{config} ({rows['seed'].nunique()})")
            axis.fill_between(steps.index, steps["min"], steps["max"], alpha=0.2)
        axis.set(xlabel="optimiser steps", ylabel=name)
    axes[0, 0].legend(title="config (seeds)")
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110)


def plot_runs(runs: list[Path], folder: Path) -> Path:
    """Plot reconstruction against the FactorVAE score of tested runs, a colour per model (as Liu et al., fig. 8).

    Args:
        runs: Folders of runs with ``test.json``.
        folder: Where to; is made if it is missing.

    Returns:
        The PNG file.

    Raises:
        FileNotFoundError: If a run has not been tested, naming it.
        OSError: If the file cannot be written.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        file = run / TEST_FILE
        if not file.is_file():
            msg = f"--runs {run}: there is no {TEST_FILE} in it; run vae-attention dsprites test first"
            raise FileNotFoundError(msg)
        result = json.loads(file.read_text(encoding="utf-8"))
        points.setdefault(result["model"], []).append((result["reconstruction"], result["factor_vae_score"]))
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for model, values in sorted(points.items()):
        axes.scatter(*np.array(values).T, label=f"{model} ({len(values)})")
    axes.set_xlabel("reconstruction error (nats per image)")
    axes.set_ylabel("FactorVAE score")
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "disentanglement.png"
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110)
    return file

"""Is one arm of a campaign better than another? Courses over the steps, and differences paired by seed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from anomalib_vae_attention.common.atomic_files import replacing

METRICS = (
    "factor_vae_score",
    "factor_vae_score_strict",
    "mig",
    "dci_disentanglement_lasso",
    "sap",
    "beta_vae_score",
    "reconstruction",
)
PLOTTED = {
    "factor_vae_score": "FactorVAE score",
    "mig": "MIG",
    "dci_disentanglement_lasso": "DCI disentanglement, lasso",
    "reconstruction": "reconstruction error (nats per image)",
}
"""What is plotted over the steps, by column of the table."""


def compare(results: pd.DataFrame, pairs: Sequence[tuple[str, str]], metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Compare arms by the seeds that both of them have, each pair by itself, and all pairs together.

    The interval is Student's, of 95 %; the test is the exact sign-flipping permutation test on the mean difference,
    two-sided (SciPy's ``permutation_test`` with ``samples``). Seeds of several pairs count as independent.

    Args:
        results: Columns ``config``, ``seed`` and the metrics.
        pairs: Names of two arms, the second of which is the baseline.
        metrics: Which columns; those that are missing are left out.

    Returns:
        Columns ``arm``, ``baseline``, ``metric``, ``seeds``, ``difference``, ``low``, ``high``, ``p``; the last three
        are NaN where fewer than two seeds are shared.
    """
    tables = {name: rows.set_index("seed") for name, rows in results.groupby("config")}
    rows = []
    for metric in (metric for metric in metrics if metric in results):
        pooled = []
        for arm, baseline in pairs:
            if arm in tables and baseline in tables:
                pooled.append((tables[arm][metric] - tables[baseline][metric]).dropna().to_numpy())
                rows.append({"arm": arm, "baseline": baseline, "metric": metric, **summarise(pooled[-1])})
        if len(pooled) > 1:
            rows.append({"arm": "all", "baseline": "all", "metric": metric, **summarise(np.concatenate(pooled))})
    return pd.DataFrame(rows)


def summarise(differences: np.ndarray) -> dict[str, float]:
    """Return number, mean, 95 % interval and permutation test's p of paired differences, shape ``(n,)``."""
    count = len(differences)
    mean = float(differences.mean()) if count else float("nan")
    if count < 2:
        return {"seeds": count, "difference": mean, "low": float("nan"), "high": float("nan"), "p": float("nan")}
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    test = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=2**14)
    low, high = float(interval.low), float(interval.high)
    return {"seeds": count, "difference": mean, "low": low, "high": high, "p": float(test.pvalue)}


def plot_courses(table: pd.DataFrame, file: Path) -> None:
    """Plot metrics over the steps, a colour a config: the mean over its seeds, and from the least to the greatest.

    Args:
        table: Columns ``config``, ``seed``, ``step`` and those of :data:`PLOTTED`.
        file: PNG file to write.

    Raises:
        OSError: If the file cannot be written.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 2)
    for (metric, name), axis in zip(PLOTTED.items(), axes.flat, strict=True):
        for config, rows in table.groupby("config", sort=False):
            steps = rows.groupby("step")[metric].agg(["mean", "min", "max"])
            axis.plot(steps.index, steps["mean"], label=f"{config} ({rows['seed'].nunique()})")
            axis.fill_between(steps.index, steps["min"], steps["max"], alpha=0.2)
        axis.set(xlabel="optimiser steps", ylabel=name)
    axes[0, 0].legend(title="config (seeds)")
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110)


def plot_runs(results: pd.DataFrame, file: Path) -> None:
    """Plot reconstruction against the FactorVAE score of tested runs, a colour per model (as Liu et al., fig. 8).

    Args:
        results: Columns ``model``, ``reconstruction`` and ``factor_vae_score``, a row per run.
        file: PNG file to write.

    Raises:
        OSError: If the file cannot be written.
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for model, rows in results.groupby("model"):
        axes.scatter(rows["reconstruction"], rows["factor_vae_score"], label=f"{model} ({len(rows)})")
    axes.set(xlabel="reconstruction error (nats per image)", ylabel="FactorVAE score")
    axes.legend()
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110)

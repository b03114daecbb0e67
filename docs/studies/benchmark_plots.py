"""Plots of ``vae-attention benchmark``, as PNG: ``python docs/studies/benchmark_plots.py FOLDER``.

FOLDER has the benchmark's results. Accuracy is plotted against the memory of the fit and against each latency.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from anomalib_vae_attention.benchmark.plan import BACKBONE
from anomalib_vae_attention.common.atomic_files import replacing
from anomalib_vae_attention.common.measures import MAIN, MEASURES

MARKERS = "osD^vPX*<>"


def accuracy_plot(summary: pd.DataFrame, column: str, label: str, file: Path) -> bool:
    """Plot the accuracy of every model against one of its costs, a row of plots per category.

    Args:
        summary: The benchmark's table of medians, ``summary.csv``.
        column: Column of the cost, which is plotted on a logarithmic axis.
        label: What it is, with its unit.
        file: PNG file to write.

    Returns:
        Whether there was anything to plot.
    """
    shown = summary[(summary["model"] != BACKBONE) & (summary.get(column, 0) > 0)]
    if shown.empty:
        return False
    categories, models = list(shown["category"].unique()), list(shown["model"].unique())
    figure = Figure(figsize=(4 * len(MAIN), 0.9 + 3.1 * len(categories)), layout="constrained")
    axes = figure.subplots(len(categories), len(MAIN), squeeze=False)
    for row, category in zip(axes, categories, strict=True):
        part = shown[shown["category"] == category]
        for axis, measure in zip(row, MAIN, strict=True):
            for index, model in enumerate(models):
                point = part[part["model"] == model]
                colour = mpl.colormaps["tab10"](index % 10)
                style = {"color": colour, "markersize": 9, "label": model, "clip_on": False}
                axis.plot(point[column], point[measure], MARKERS[index % 10], **style)
            axis.set(xscale="log", xlabel=label, ylabel=MEASURES[measure], title=category)
            axis.margins(0.15)
            axis.set_ylim(top=1)
            # Few plain numbers: the default writes powers of ten, or none.
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7), numticks=8))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.grid(visible=True, alpha=0.25)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(models), 5), frameon=False)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110)
    return True


def main() -> None:
    """Plot, and print which files were written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the benchmark's results")
    folder = parser.parse_args().folder
    summary = pd.read_csv(folder / "summary.csv")
    costs = {"memory_fit_mib": "memory of the fit, MiB"}
    costs |= {name: f"{name.removesuffix('_ms')}, ms per image" for name in summary if name.endswith("_ms")}
    for column, label in costs.items():
        file = folder / f"accuracy_{column}.png"
        if accuracy_plot(summary, column, label, file):
            print(file)


if __name__ == "__main__":
    main()

"""Plots of a comparison, as PNG."""

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

from anomalib_vae_attention.common.atomic_files import replacing

from .plan import BACKBONE

SCORES = {"image_AUROC": "image AUROC", "pixel_AUROC": "pixel AUROC", "pixel_AUPRO": "AUPRO"}
MARKERS = "osD^vPX*<>"
BORDER = (255, 64, 64)


def accuracy_plot(summary: pd.DataFrame, column: str, label: str, file: Path) -> None:
    """Plot the accuracy of every model against one of its costs, a row of plots a category.

    Args:
        summary: Table of :func:`.tables.summary_table`.
        column: Column of the cost, which is plotted on a logarithmic axis.
        label: What it is, with its unit.
        file: PNG file to write.
    """
    shown = summary[summary["model"] != BACKBONE]
    if column not in shown:
        return
    shown = shown[shown[column] > 0]
    categories, models = list(shown["category"].unique()), list(shown["model"].unique())
    if not models:
        return
    figure = Figure(figsize=(4 * len(SCORES), 0.9 + 3.1 * len(categories)), layout="constrained")
    axes = figure.subplots(len(categories), len(SCORES), squeeze=False)
    for row, category in zip(axes, categories, strict=True):
        for axis, (score, name) in zip(row, SCORES.items(), strict=True):
            for model, marker, colour in zip(models, MARKERS * len(models), _colours(len(models)), strict=False):
                point = shown[(shown["category"] == category) & (shown["model"] == model)]
                axis.plot(point[column], point[score], marker, color=colour, markersize=9, label=model)
            axis.set(xscale="log", xlabel=label, ylabel=name, title=category)
            _tidy(axis, shown[shown["category"] == category][score])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(models), 5), frameon=False)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110)


def _tidy(axis: Axes, scores: "pd.Series[float]") -> None:
    """Leave room around the points, and label the axes with few plain numbers."""
    margin = max(0.01, 0.2 * (scores.max() - scores.min()))
    axis.set_ylim(scores.min() - margin, min(scores.max() + margin, 1.004))
    low, high = axis.get_xlim()
    axis.set_xlim(low / 1.4, high * 1.4)
    steps = (1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(visible=True, alpha=0.25)


def _colours(count: int) -> list[tuple[float, float, float, float]]:
    return [mpl.colormaps["tab10"](index % 10) for index in range(count)]


def heat_map(values: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Colour an anomaly map.

    Args:
        values: The map, of shape ``(H, W)``.
        limits: Values for the darkest and the brightest colour.

    Returns:
        Pixels of shape ``(H, W, 3)``.
    """
    low, high = limits
    unit = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    return np.asarray(colormaps["inferno"](unit, bytes=True)[..., :3])


def outline(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw the border of a mask, two pixels wide, on an image.

    Args:
        image: Pixels of shape ``(H, W, 3)``.
        mask: Mask of shape ``(H, W)``.

    Returns:
        A copy with the border.
    """
    padded = np.pad(mask, 2)
    height, width = mask.shape
    shifts = [(0, 2), (4, 2), (2, 0), (2, 4)]
    inner = np.logical_and.reduce([padded[y : y + height, x : x + width] for y, x in shifts])
    result = image.copy()
    result[mask & ~inner] = BORDER
    return result


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels ``(H, W, 3)`` as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=85)
    return stream.getvalue()

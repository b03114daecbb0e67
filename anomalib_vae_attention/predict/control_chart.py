"""The p chart of statistical process control: a share over time, its limits, and since when it has moved."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import xlogy
from scipy.stats import binom, binomtest, fisher_exact

from anomalib_vae_attention.common.argument_checks import require_share, require_whole
from anomalib_vae_attention.common.atomic_files import replacing

TAIL = 0.00135
"""Probability beyond each limit of the chart: that of a normal variable beyond three deviations."""
LEVEL = 0.01
"""Highest probability of what is called a drift where there is none."""
PER_GROUP, BASELINE, FEWEST = 5, 25, 100
"""Flagged images expected per group, groups of the baseline (both after Montgomery), and fewest images."""


class Chart(NamedTuple):
    """A p chart: the share of flagged images per group of ``size`` images, as counts.

    Attributes:
        counts: Flagged images per group, of shape ``(G,)``.
        size: Images per group.
        baseline: How many groups at the start say what is normal; 0 where that is given.
        centre: The share that is normal.
        limits: Fewest and most flagged images of a group that are no signal.
    """

    counts: NDArray[np.int64]
    size: int
    baseline: int
    centre: float
    limits: tuple[int, int]

    @property
    def outside(self) -> NDArray[np.bool_]:
        """Whether each group is beyond the limits, of shape ``(G,)``."""
        return (self.counts < self.limits[0]) | (self.counts > self.limits[1])


class Change(NamedTuple):
    """A step in the share of flagged images.

    Attributes:
        group: The first group after it.
        share: The share since then.
        probability: Of as clear a step anywhere where there is none, at most.
    """

    group: int
    share: float
    probability: float


def make_chart(
    flagged: NDArray[np.bool_], size: int | None = None, baseline: int | None = None, expected: float | None = None
) -> Chart:
    """Chart images in the order of time, of shape ``(N,)``; the first of them are left out where groups do not fit.

    Args:
        flagged: Whether each image is flagged.
        size: Images per group; so many that five are flagged, and there are ten groups, for ``None``.
        baseline: Groups that say what is normal; 25, or half of them, for ``None``.
        expected: The share that is normal, in place of a baseline.

    Raises:
        ValueError: If there are too few images, or an argument is out of range.
    """
    if len(flagged) < FEWEST:
        msg = f"There are {len(flagged)} images, of which nothing can be said: at least {FEWEST} are needed."
        raise ValueError(msg)
    for name, value in (("--group", size), ("--baseline", baseline)):
        if value is not None:
            require_whole(name, value, 1)
    if expected is not None:
        require_share("--expected", expected)
    share = expected or max(float(flagged.mean()), 1 / len(flagged))
    size = size or min(int(np.ceil(PER_GROUP / share)), len(flagged) // 10)
    groups = len(flagged) // size
    first = 0 if expected is not None else min(baseline or min(BASELINE, groups // 2), groups)
    if first >= groups or (first == 0 and expected is None):
        msg = f"{groups} groups of {size} images leave none to compare with a baseline of {max(first, 1)}."
        raise ValueError(msg)
    counts = flagged[len(flagged) - groups * size :].reshape(groups, size).sum(1)
    # No flagged image among many is not a share of 0, of which one would be a drift.
    centre = expected or max(float(counts[:first].sum()), 0.5) / (first * size)
    limits = int(binom.ppf(TAIL, size, centre)), int(binom.isf(TAIL, size, centre))
    return Chart(counts, size, first, centre, limits)


def find_change(chart: Chart) -> Change:
    """Estimate when the share moved, by maximum likelihood.

    After Samuel and Pignatiello, Identifying the time of a step change in the process fraction nonconforming, Quality
    Engineering 13 (2001), 357-365. The probability is of an exact test, times the number of groups (Bonferroni).
    """
    later = chart.counts[chart.baseline :]
    flagged, images = np.cumsum(later[::-1])[::-1], np.arange(len(later), 0, -1) * chart.size
    gain = (
        xlogy(flagged, flagged / images)
        + xlogy(images - flagged, 1 - flagged / images)
        - xlogy(flagged, chart.centre)
        - xlogy(images - flagged, 1 - chart.centre)
    )
    start = int(gain.argmax())
    count, total = int(flagged[start]), int(images[start])
    if chart.baseline:
        before, size = int(chart.counts[: chart.baseline].sum()), chart.baseline * chart.size
        probability = float(fisher_exact([[count, total - count], [before, size - before]]).pvalue)
    else:
        probability = float(binomtest(count, total, chart.centre).pvalue)
    return Change(chart.baseline + start, count / total, min(1.0, probability * len(later)))


def has_signals(chart: Chart) -> bool:
    """Say whether more groups after the baseline are beyond the limits than chance explains."""
    outside = chart.outside[chart.baseline :]
    return bool(binom.sf(outside.sum() - 1, len(outside), 2 * TAIL) < LEVEL)


def draw(chart: Chart, change: Change | None, file: Path) -> None:
    """Draw a chart, with the change where there is one, as a picture: PNG unless the file's ending says otherwise."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    place, share = np.arange(1, len(chart.counts) + 1), 100 * chart.counts / chart.size
    if chart.baseline:
        axes.axvspan(0.5, chart.baseline + 0.5, color="0.92", label="baseline")
    axes.plot(place, share, "-o", color="tab:blue", markersize=3, linewidth=1, label="flagged images")
    outside = chart.outside
    axes.plot(place[outside], share[outside], "o", color="tab:red", markersize=5, label="beyond the limits")
    axes.axhline(100 * chart.centre, color="tab:green", label=f"normal: {100 * chart.centre:.2g} %")
    for limit in chart.limits:
        axes.axhline(100 * limit / chart.size, color="tab:orange", linestyle="--")
    axes.plot([], [], color="tab:orange", linestyle="--", label="limits")
    if change:
        axes.plot(
            [change.group + 0.5, len(place) + 0.5], [100 * change.share] * 2, color="tab:red", label="since the change"
        )
        axes.axvline(change.group + 0.5, color="tab:red", linestyle=":")
    axes.set(xlabel=f"group of {chart.size} images", ylabel="flagged, %", xlim=(0.5, len(place) + 0.5))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize="small")
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=120, format=file.suffix[1:] or "png")

"""Split conformal prediction: the thresholds that keep a false-positive rate, from normal images alone.

Vovk et al., "Algorithmic Learning in a Random World", 2005; for shares of pixels, Angelopoulos et al., "Conformal Risk
Control", ICLR 2024. They hold for any model and any distribution, on one condition: the images that the threshold is
taken from were not learnt from, and come from where future images come from.
"""

import math

import torch

LEVELS = 2**16
"""Levels of the pixels' histogram over (0, 1); a power of two, so that single precision falls into levels exactly."""


def share_above(count: int, rate: float) -> float:
    """Return the share of calibration images, or of their pixels, that may lie above a threshold.

    The next image is one more draw, and may be the worst: ``n/(n+1) share + 1/(n+1) <= rate`` (Angelopoulos et al.,
    eq. 4, with a loss of at most 1). For images it is the rank ``ceil((n + 1)(1 - rate))`` of conformal prediction.

    Args:
        count: Number ``n`` of calibration images, at least 1.
        rate: Requested false-positive rate, in ``(0, 1)``.

    Returns:
        A share in ``[0, 1)``; 0 also where there are fewer than ``1 / rate - 1`` images and no threshold is certain.
    """
    # Without the small addition, 20 * 0.05 - 1 could come out below 0.
    return max(0.0, ((count + 1) * rate - 1 + 1e-9) / count)


def images_needed(rate: float) -> int:
    """Return the least number of calibration images with which a false-positive rate can be kept for certain."""
    return math.ceil(1 / rate - 1 - 1e-9)


def image_threshold(scores: torch.Tensor, rate: float) -> float:
    """Return the threshold that at most a share ``rate`` of new normal images exceeds.

    The calibration images' scores are of shape ``(n,)``, ``n`` at least 1.
    """
    above = math.floor(len(scores) * share_above(len(scores), rate))
    return float(scores.sort(descending=True).values[above])


def pixel_levels(anomaly_map: torch.Tensor) -> torch.Tensor:
    """Count the pixels of anomaly maps, of any shape and in ``[0, 1]``, at each level: shape ``(LEVELS + 1,)``."""
    level = (anomaly_map.detach().float().flatten() * LEVELS).ceil().long()
    return torch.bincount(level, minlength=LEVELS + 1).cpu()


def pixel_threshold(levels: torch.Tensor, count: int, rate: float) -> float:
    """Return the threshold that at most a share ``rate`` of the pixels of new normal images exceeds.

    Args:
        levels: Number of the calibration images' pixels at each level (see :func:`pixel_levels`).
        count: Number of calibration images: their pixels are not independent draws, the images are.
        rate: Requested false-positive rate, in ``(0, 1)``.
    """
    above = math.floor(int(levels.sum()) * share_above(count, rate))
    higher = levels.sum() - levels.cumsum(0)
    return int((higher <= above).nonzero()[0]) / LEVELS

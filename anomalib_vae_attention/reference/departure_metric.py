"""How much the directions of a departure count: a metric between a latent and its match, found from normal images.

Departures of normal images from their matches are larger in some directions of the latent space than in others. Where
they are those of one Gaussian, as in a fabric that is alike everywhere, their likelihood is the Mahalanobis distance,
which PaDiM takes (Defard et al., arXiv 2011.08785). Where their size varies from cell to cell, one covariance is the
mean of unlike things. There the directions in which normal images vary count more: defects depart in them, too.
"""

import logging
import math
from collections.abc import Sequence

import torch

logger = logging.getLogger(__name__)

PLAIN_AT = 1 / 6
"""Homogeneity of departures at which all directions count alike. docs/ablation.md says what chose it."""
LEAST_VARIANCE = 0.1
"""Least variance of a direction, in units of the posterior's own: that of a latent that is not compared is nearly 0."""
LEAST_DEPARTURES = 20
"""Departures per latent that a covariance needs."""


def moments(departures: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what :func:`departure_metric` needs of departures.

    Args:
        departures: Batches of departures, of shape ``(B, c, d)``.

    Returns:
        Their second moment, of shape ``(d, d)``, float64, and their squared lengths, of shape ``(n, c)``.
    """
    square = torch.cat([departure.square().sum(2) for departure in departures])
    outer = [rows.T.double() @ rows.double() for rows in (departure.flatten(0, 1) for departure in departures)]
    return torch.stack(outer).sum(0) / square.numel(), square


def homogeneity(covariance: torch.Tensor, energy: torch.Tensor) -> float:
    """Return the share of the variance of energies that one Gaussian of departures explains.

    The squared length of a Gaussian vector has mean ``tr C`` and variance ``2 tr C^2`` (Box, "Some Theorems on
    Quadratic Forms", Annals of Mathematical Statistics 25, 1954). Where the size of departures varies from place to
    place or from image to image, their squared length varies more.

    Args:
        covariance: Second moment ``C`` of the departures, of shape ``(d, d)``.
        energy: Their squared lengths, of any shape, not all 0.

    Returns:
        Share from 0 to 1: 1 for a Gaussian, 0 where a few departures are much larger than all others.
    """
    expected = 2 * covariance.square().sum() / covariance.trace().square()
    found = energy.double().var(correction=0) / energy.double().mean().square()
    return float((expected / found).clamp(max=1))


def metric_power(covariance: torch.Tensor, energy: torch.Tensor) -> float:
    """Return the power of the covariance that departures are measured in; see :func:`departure_metric`.

    It goes with the logarithm of the homogeneity: 1, the Mahalanobis distance, for one Gaussian, 0 at :data:`PLAIN_AT`,
    and never below -1.

    Args:
        covariance: Second moment of the whitened departures of left-out normal images, of shape ``(d, d)``.
        energy: Their squared lengths, of any shape.

    Returns:
        Power from -1 to 1; 0 where there are too few departures, or none of any length.
    """
    if energy.numel() < LEAST_DEPARTURES * len(covariance) or not energy.any():
        return 0.0
    share = homogeneity(covariance, energy)
    power = max(-1.0, 1 - math.log(share) / math.log(PLAIN_AT))
    logger.info(
        "One Gaussian explains %.0f %% of how departures of normal images vary: "
        "directions in which they are large count %s (power %.2f).",
        100 * share,
        "less" if power > 0 else "more",
        -power,
    )
    return power


def departure_metric(covariance: torch.Tensor, power: float) -> torch.Tensor:
    """Return the metric of departures: the energy of a departure ``x`` is ``x^T M x`` with ``M = a C^-q``.

    Args:
        covariance: Second moment ``C`` of the whitened departures of left-out normal images, of shape ``(d, d)``.
        power: ``q``, see :func:`metric_power`.

    Returns:
        ``M``, symmetric and positive definite, of shape ``(d, d)``. The factor ``a`` keeps the mean energy of normal
        images. The identity where the power is 0.
    """
    if power == 0:
        return torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    values, vectors = torch.linalg.eigh(covariance)
    metric = vectors * values.clamp_min(LEAST_VARIANCE).pow(-power) @ vectors.T
    return metric * covariance.trace() / (metric * covariance).sum()

"""How often each shared exemplar is normal at each place: the prior of a mixture that is conditioned on the place.

After the VampPrior (Tomczak and Welling, AISTATS 2018), whose prior is the average of the posteriors of some inputs.
Here the inputs are exemplars, and their weights depend on the cell of the grid.
"""

from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional as F  # noqa: N812

from .base import HIDDEN

PRIOR_WINDOW = 3
"""Width of the square of cells, odd, over which it is counted how often a shared exemplar is the nearest."""
PRIOR_FLOOR = 1e-3
"""Probability of all shared exemplars together that were never the nearest there."""
PRIOR_STEP = 1 / 16
"""Step in which a byte keeps the negative logarithm of a prior, in nats: up to 15.9."""


def place_prior(
    grid_size: Sequence[int],
    exemplars: torch.Tensor,
    image: torch.Tensor,
    normal: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Count at each cell which of the shared exemplars is the nearest to normal images.

    The prior is its share of the counts at the cell and the cells around it, plus :data:`PRIOR_FLOOR` over ``K``. Where
    nothing was counted, all are alike.

    Args:
        grid_size: Height and width of the grid, in cells.
        exemplars: The ``K`` shared exemplars, whitened, of shape ``(d, K)``.
        image: Number of the image that each is of, of shape ``(K,)``.
        normal: Latents ``(h w, d)`` of each normal image, and its number ``()``: its own exemplars are left out.

    Returns:
        The negative logarithm of each exemplar's prior at each cell, in steps of :data:`PRIOR_STEP`: bytes of shape
        ``(h w, K)``.
    """
    height, width = grid_size
    counts = torch.zeros(height * width, exemplars.shape[1], device=exemplars.device)
    if not counts.numel():
        return counts.byte()
    half_norm = 0.5 * exemplars.square().sum(0)
    for query, number in normal:
        nearness = torch.addmm(-half_norm, query, exemplars) - HIDDEN * (image == number)
        nearest = nearness.argmax(1, keepdim=True)
        counts.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=counts.dtype))
    # By one, pooling gives sums.
    maps = counts.T.unflatten(1, (height, width))
    around = F.avg_pool2d(maps, PRIOR_WINDOW, 1, PRIOR_WINDOW // 2, divisor_override=1).flatten(1).T.contiguous()
    total = around.sum(1, keepdim=True)
    share = torch.where(total > 0, around / total.clamp_min(1), 1 / counts.shape[1])
    steps = -(share + PRIOR_FLOOR / counts.shape[1]).log() / PRIOR_STEP
    return steps.round().clamp(0, torch.iinfo(torch.uint8).max).byte()

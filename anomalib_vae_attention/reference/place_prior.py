"""How often each shared exemplar is normal at each place: the prior of a mixture that is conditioned on the place.

After the VampPrior (Tomczak and Welling, AISTATS 2018), whose prior is the average of the posteriors of some inputs.
Here the inputs are exemplars, and their weights depend on the cell of the grid.
"""

from collections.abc import Sequence

import torch

from anomalib_vae_attention.resampling import box_matrix

from .base import HIDDEN

PRIOR_WINDOW = 3
"""Width of the square of cells, odd, over which it is counted how often a shared exemplar is the nearest."""
PRIOR_FLOOR = 1e-3
"""Probability of all shared exemplars together that were never the nearest there."""
PRIOR_STEP = 1 / 16
"""Step in which a byte keeps the negative logarithm of a prior, in nats: up to 15.9."""


class PlaceCounts:
    """Counts at each cell of a grid which of the shared exemplars is the nearest to normal images.

    Args:
        grid_size: Height and width of the grid, in cells.
        exemplars: The ``K`` shared exemplars, whitened, of shape ``(d, K)``.
        image: Number of the image that each is of, of shape ``(K,)``.
    """

    def __init__(self, grid_size: Sequence[int], exemplars: torch.Tensor, image: torch.Tensor) -> None:
        self._height, self._width = grid_size
        self._exemplars, self._image = exemplars, image
        self._half_norm = 0.5 * exemplars.square().sum(0)
        self._counts = torch.zeros(self._height * self._width, exemplars.shape[1], device=exemplars.device)

    def add(self, query: torch.Tensor, number: torch.Tensor) -> None:
        """Count for the latents ``(h w, d)`` of the image of a number, whose own exemplars are left out."""
        if not self._counts.shape[1]:
            return
        nearness = torch.addmm(-self._half_norm, query, self._exemplars) - HIDDEN * (self._image == number)
        nearest = nearness.argmax(1, keepdim=True)
        self._counts.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=self._counts.dtype))

    def prior(self) -> torch.Tensor:
        """Return the negative logarithm of each exemplar's prior at each cell, in bytes of shape ``(h w, K)``.

        The prior is its share of the counts at the cell and the cells around it, plus :data:`PRIOR_FLOOR` over ``K``.
        Where nothing was counted, all are alike. The bytes are steps of :data:`PRIOR_STEP`.
        """
        count = max(1, self._counts.shape[1])
        along_rows, along_columns = (
            box_matrix(side, PRIOR_WINDOW).to(self._counts) for side in (self._height, self._width)
        )
        around = torch.einsum("ij,jwk->iwk", along_rows, self._counts.view(self._height, self._width, -1))
        around = torch.einsum("ij,wjk->wik", along_columns, around).flatten(0, 1)
        total = around.sum(1, keepdim=True)
        share = torch.where(total > 0, around / total.clamp_min(1), 1 / count)
        steps = -(share + PRIOR_FLOOR / count).log() / PRIOR_STEP
        return steps.round().clamp(0, torch.iinfo(torch.uint8).max).byte()

"""Which exemplars are kept: those of each cell that others do not stand for, and some that all cells share."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .byte_latents import KeptLatents

MAX_EXEMPLARS = 2000
"""Most images to choose from, if nothing else is asked for."""
COMMON = 1024
"""Exemplars that all cells share."""
POOL = 60_000
"""Latents among which the shared exemplars are chosen."""
TOLERANCE = 0.3
"""Share by which the mean energy of normal images to their nearest exemplar of a cell may rise for a smaller bank."""
LAYOUT_TOLERANCE = 0.6
"""The same where pictures have one layout: there the shared exemplars know the place by their prior, and stand in."""
LEAST_NEAREST = 1.0
"""Least such energy that the share is taken of: one standard deviation in one latent."""
LEAST_EXEMPLARS = 64
"""Exemplars that every cell keeps, if there are as many images: fewer would save little."""
TRIED_IMAGES = 64
"""Normal images, evenly spaced, whose nearest exemplars say how many are enough."""
ALIGNMENT = 16
"""What the number of exemplars is a multiple of, for the sake of the processors that multiply them."""
DISTANCE_BYTES = 2**25
"""Most memory of the distances between all exemplars of some cells."""
GPU_DISTANCE_BYTES = 2**30
"""The same on a GPU, where few large parts are faster."""


class Bank(NamedTuple):
    """Exemplars of every cell of a grid of ``h w`` cells, each of one of ``N`` images.

    Attributes:
        steps: Whitened exemplars relative to the cell's mean, in steps, of shape ``(h w, d, K)``, 8-bit integers.
        image: Number of the image that each is of, of shape ``(h w, K)``, 64-bit integers.
    """

    steps: torch.Tensor
    image: torch.Tensor


class Common(NamedTuple):
    """Exemplars that all cells share.

    Attributes:
        latent: Whitened exemplars relative to ``centre``, of shape ``(d, K)``.
        centre: Mean of the whitened latents that they were chosen among, of shape ``(d,)``.
        image: Number of the image that each is of, of shape ``(K,)``.
        cell: Number of the cell that each is of, rows of the grid before columns, of shape ``(K,)``.
    """

    latent: torch.Tensor
    centre: torch.Tensor
    image: torch.Tensor
    cell: torch.Tensor


def choose_own(images: KeptLatents, step: torch.Tensor, tolerance: float = TOLERANCE) -> Bank:
    """Choose the exemplars of each cell: those of all images there, less those that others stand for.

    Each cell's are put in the order of the greedy k-centre (see :func:`_farthest_first`), and the first ones are kept.
    Their number is the same in every cell. It is the least with which the mean energy of normal images to their
    nearest, they themselves left out, rises by no more than the tolerance. That is a third of them where parts lie
    alike, and more where each is different.

    Args:
        images: Exemplars of ``N`` images, each of shape ``(d, h, w)``, aligned (:meth:`KeptLatents.align`).
        step: Step of each latent, of shape ``(d,)``.
        tolerance: Share by which that energy may rise, at least 0.

    Returns:
        ``K`` exemplars per cell, at least :data:`LEAST_EXEMPLARS`, side by side on the device of ``step``. All of them
        if there are no more, or the grid has one cell only.
    """
    latent_dim, height, width = images[0].shape
    count, cells = len(images), height * width

    def row_of(row: int) -> torch.Tensor:
        return images.row(row).permute(2, 1, 0)

    orders = [torch.arange(count, dtype=torch.int32, device=step.device).expand(width, -1)] * height
    kept = count
    if cells > 1 and count > LEAST_EXEMPLARS:
        limit = DISTANCE_BYTES if step.device.type == "cpu" else GPU_DISTANCE_BYTES
        part = max(1, min(width, limit // (4 * count**2)))
        energies = torch.zeros((), dtype=torch.float64, device=step.device)
        for row in range(height):
            found = [_order_cells(some.float() * step[:, None]) for some in row_of(row).split(part)]
            orders[row] = torch.cat([order for order, _ in found]).int()
            energies = energies + torch.stack([nearest for _, nearest in found]).double().sum(0) / cells
        enough = int((energies <= (1 + tolerance) * energies[-1].clamp_min(LEAST_NEAREST)).nonzero()[0]) + 1
        kept = min(count, max(LEAST_EXEMPLARS, enough * ALIGNMENT))
    steps = torch.empty(cells, latent_dim, kept, dtype=torch.int8, device=step.device)
    for row, order in enumerate(orders):
        chosen = order[:, None, :kept].long().expand(-1, latent_dim, -1)
        steps[row * width : (row + 1) * width] = row_of(row).gather(2, chosen)
    # PyTorch before 2.8 gathers by 64-bit integers only.
    return Bank(steps, torch.cat([order[:, :kept] for order in orders]).long())


def _order_cells(exemplars: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Order the exemplars ``(c, d, N)`` of some cells so that each is the farthest from those before it.

    Returns:
        The order ``(c, N)``, and the energy of images to the nearest other among the first 16, 32 and so on to all (see
        :data:`ALIGNMENT`), the mean over some images, summed over the cells, of shape ``(ceil(N / 16),)``.
    """
    cells, _, count = exemplars.shape
    norm = exemplars.square().sum(1)
    # In place, because this is the largest tensor here.
    distance = torch.bmm(exemplars.mT, exemplars).mul_(-2).add_(norm[:, None]).add_(norm[..., None]).clamp_(min=0)
    rows = torch.arange(cells, device=norm.device)
    order = _farthest_first(norm, count, lambda last: distance[rows, last])
    tried = torch.linspace(0, count - 1, min(TRIED_IMAGES, count), device=norm.device).round().long()
    others = distance[:, tried].masked_fill(tried[:, None] == torch.arange(count, device=norm.device), torch.inf)
    others = others.gather(2, order[:, None].expand(-1, len(tried), -1))
    blocks = torch.stack([block.amin(2) for block in others.split(ALIGNMENT, 2)], 2)
    return order, blocks.cummin(2).values.mean(1).sum(0)


def _farthest_first(
    norm: torch.Tensor, count: int, distance_to: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Choose by the greedy k-centre, for several sets at once.

    Gonzalez, "Clustering to minimize the maximum intercluster distance" (1985); the first is the one of greatest norm.

    Args:
        norm: Squared norm of the points of each set, of shape ``(c, N)``.
        count: How many to choose, from 1 to ``N``.
        distance_to: Takes a point of each set, of shape ``(c,)``, and gives the squared distances of all from it, of
            shape ``(c, N)``.

    Returns:
        Their numbers, each the farthest from those before it, of shape ``(c, count)``.
    """
    rows = torch.arange(len(norm), device=norm.device)
    gap, chosen = torch.full_like(norm, torch.inf), [norm.argmax(1)]
    for _ in range(count - 1):
        last = chosen[-1]
        torch.minimum(gap, distance_to(last), out=gap)
        # Its own gap is zero but for rounding.
        gap[rows, last] = -torch.inf
        chosen.append(gap.argmax(1))
    return torch.stack(chosen, 1)


def choose_common(means: KeptLatents, scale: torch.Tensor) -> Common:
    """Choose exemplars of any cell of any image that are unlike each other: each is farthest from those before it.

    The greedy k-centre on a seeded random sample, by the distance between whitened latents. A random choice would
    mostly take what is frequent, which the cells' own exemplars know.

    Args:
        means: Posterior means of the images, each of shape ``(d, h, w)``, not aligned yet.
        scale: Factor of each latent that whitens, of shape ``(d,)``.

    Returns:
        :data:`COMMON` exemplars or as many as there are, on the device of ``scale``; none of a grid of one cell, where
        there is no other place.
    """
    latent_dim, cells = means[0].shape[0], means[0][0].numel()
    sample = torch.randperm(len(means) * cells, generator=torch.Generator().manual_seed(0))[:POOL].sort().values
    image, cell = sample // cells, sample % cells
    if cells == 1:
        empty = torch.zeros(latent_dim, 0, device=scale.device)
        return Common(empty, torch.zeros_like(scale), image[:0], cell[:0])
    counts = torch.bincount(image, minlength=len(means)).tolist()
    latent = torch.empty(len(sample), latent_dim, device=scale.device)
    for ours, mean, some in zip(latent.split(counts), means, cell.to(scale.device).split(counts), strict=True):
        ours.copy_(mean.flatten(1).T[some])
    latent *= scale
    centre = latent.mean(0)
    # Small numbers, so that a search that expands the square loses no digits.
    latent -= centre
    norm = latent.square().sum(1)

    def distance_to(last: torch.Tensor) -> torch.Tensor:
        # By its number on the device: reading it back for each would wait for all that was asked before.
        return (torch.addmv(norm, latent, latent[last][0], alpha=-2) + norm[last])[None]

    chosen = _farthest_first(norm[None], min(COMMON, len(latent)), distance_to)[0]
    taken = chosen.cpu()
    return Common(latent[chosen].T.contiguous(), centre, image[taken], cell[taken])

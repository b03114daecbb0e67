"""What the exemplars are made of: those of every cell side by side, a byte a latent, and some that all cells share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Bank(NamedTuple):
    """Exemplars of every cell of a grid of ``h w`` cells, one of each of ``N`` images.

    Attributes:
        steps: Whitened exemplars relative to the cell's mean, in steps, of shape ``(h w, d, N)``, 8-bit integers.
        step: Step of each latent, of shape ``(d,)``.
    """

    steps: torch.Tensor
    step: torch.Tensor


class Common(NamedTuple):
    """Exemplars that all cells share.

    Attributes:
        latent: Whitened exemplars, of shape ``(d, K)``.
        image: Number of the image that each is of, of shape ``(K,)``.
        cell: Number of the cell that each is of, rows of the grid before columns, of shape ``(K,)``.
    """

    latent: torch.Tensor
    image: torch.Tensor
    cell: torch.Tensor


def gather(means: Sequence[torch.Tensor], centre: torch.Tensor, scale: torch.Tensor) -> Bank:
    """Put the exemplars of each cell side by side.

    They are stored relative to their mean at each cell: a byte then holds the differences that count, and a search that
    expands the square loses no digits.

    Args:
        means: Posterior mean of each image, of shape ``(d, h, w)``.
        centre: Their mean, of shape ``(d, h, w)``.
        scale: Factor of each latent that whitens, of shape ``(d,)``.

    Returns:
        The bank, on the device of ``centre``.
    """
    rows = range(centre.shape[1])

    def departures(row: int) -> torch.Tensor:
        latent = torch.stack([mean[:, row] for mean in means]).to(centre.device).float()
        return ((latent - centre[:, row]) * scale[:, None]).permute(2, 1, 0)

    greatest = torch.stack([departures(row).abs().amax((0, 2)) for row in rows]).amax(0)
    step = (greatest / torch.iinfo(torch.int8).max).clamp_min(torch.finfo(torch.float32).tiny)
    steps = torch.cat([(departures(row) / step[:, None]).round().to(torch.int8) for row in rows])
    return Bank(steps, step)


def choose_common(means: Sequence[torch.Tensor], scale: torch.Tensor, count: int, pool: int) -> Common:
    """Choose exemplars of any cell of any image that are unlike each other: each is farthest from those before it.

    Greedy k-centre (Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985) on a seeded random
    sample, by the distance between whitened latents. A random choice would mostly take what is frequent, which the
    cells' own exemplars know.

    Args:
        means: Posterior mean of each image, of shape ``(d, h, w)``.
        scale: Factor of each latent that whitens, of shape ``(d,)``.
        count: How many exemplars.
        pool: How many of all latents to choose among.

    Returns:
        ``count`` exemplars or as many as there are, on the device of ``scale``; none of a grid of one cell, where there
        is no other place.
    """
    latent_dim, cells = means[0].shape[0], means[0][0].numel()
    sample = torch.randperm(len(means) * cells, generator=torch.Generator().manual_seed(0))[:pool].sort().values
    image, cell = sample // cells, sample % cells
    if cells == 1:
        return Common(torch.zeros(latent_dim, 0, device=scale.device), image[:0], cell[:0])
    counts = torch.bincount(image, minlength=len(means)).tolist()
    parts = zip(means, cell.split(counts), strict=True)
    latent = torch.cat([mean.flatten(1).T[some] for mean, some in parts]).to(scale.device).float() * scale
    norm = latent.square().sum(1)
    gap = torch.full_like(norm, torch.inf)
    chosen = [int(norm.argmax())]
    for _ in range(min(count, len(latent)) - 1):
        last = chosen[-1]
        gap = torch.minimum(gap, torch.addmv(norm, latent, latent[last], alpha=-2) + norm[last])
        # Its own gap is zero but for rounding.
        gap[last] = -torch.inf
        chosen.append(int(gap.argmax()))
    taken = torch.tensor(chosen)
    return Common(latent[taken.to(scale.device)].T.contiguous(), image[taken], cell[taken])

"""The exemplars of every cell side by side, a byte a latent."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812


class Bank(NamedTuple):
    """Exemplars of every cell of a grid of ``h w`` cells, ``K`` each.

    Attributes:
        steps: Whitened exemplars relative to the cell's mean, in steps, of shape ``(h w, d, K)``, 8-bit integers.
        step: Step of each latent, of shape ``(d,)``.
        outside: 1 for exemplars that would lie outside the image, else 0, of shape ``(h w, 1, K)``.
        image: Number of the image that each exemplar is of, of shape ``(h w, K)``.
    """

    steps: torch.Tensor
    step: torch.Tensor
    outside: torch.Tensor
    image: torch.Tensor


def gather(
    means: Sequence[torch.Tensor],
    centre: torch.Tensor,
    scale: torch.Tensor,
    radius: int,
    most: int | None = None,
) -> Bank:
    """Put the exemplars of each cell side by side.

    They are stored relative to their mean at each cell: a byte then holds the differences that count, and a search that
    expands the square loses no digits.

    Args:
        means: Posterior mean of each image, of shape ``(d, h, w)``.
        centre: Their mean, of shape ``(d, h, w)``.
        scale: Factor of each latent that whitens, of shape ``(d,)``.
        radius: How many cells away an exemplar may be, 0 or more.
        most: Exemplars of a cell, at most; of more, each cell has a random sample of its own, seeded. None is all.

    Returns:
        The bank, on the device of ``centre``; the exemplars of an image together, rows of the grid before columns.
    """
    (latent_dim, height, width), device, places = centre.shape, centre.device, (2 * radius + 1) ** 2
    sample = _sample(height * width, len(means) * places, most).to(device)
    by_row = sample.view(height, width, 1, -1)
    middle = (centre * scale[:, None, None]).permute(1, 2, 0)[..., None]
    frame = [torch.ones(1, height, width, device=device)]
    inside = torch.stack([_around(frame, radius, row) for row in range(height)])

    def departures(row: int) -> torch.Tensor:
        latent = _around(means, radius, row).to(device).float() * scale[:, None]
        departure = (latent - middle[row]) * inside[row].repeat(1, 1, len(means))
        return departure.gather(2, by_row[row].expand(-1, latent_dim, -1))

    greatest = torch.stack([departures(row).abs().amax((0, 2)) for row in range(height)]).amax(0)
    step = (greatest / torch.iinfo(torch.int8).max).clamp_min(torch.finfo(torch.float32).tiny)
    steps = torch.cat([(departures(row) / step[:, None]).round().to(torch.int8) for row in range(height)])
    outside = 1 - inside.gather(3, by_row % places).flatten(0, 1)
    return Bank(steps, step, outside, sample // places)


def _sample(cells: int, exemplars: int, most: int | None) -> torch.Tensor:
    """Return the numbers of the exemplars that each cell keeps, ascending, of shape ``(h w, K)``."""
    if most is None or exemplars <= most:
        return torch.arange(exemplars).expand(cells, -1)
    random = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(exemplars, generator=random)[:most].sort().values for _ in range(cells)])


def _around(maps: Sequence[torch.Tensor], radius: int, row: int) -> torch.Tensor:
    """Return what maps ``(d, h, w)`` have around each cell of a row, of shape ``(w, d, N k)``, zeros outside."""
    top, bottom = row - radius, row + radius + 1
    strip = torch.stack([each[:, max(0, top) : bottom] for each in maps])
    strip = F.pad(strip, (radius, radius, max(0, -top), max(0, bottom - maps[0].shape[1])))
    return strip.unfold(3, 2 * radius + 1, 1).permute(3, 1, 0, 2, 4).flatten(2)

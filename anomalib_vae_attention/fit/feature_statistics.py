"""What the fit of the feature VAE reads features for: their moments, and a cache that spares a second reading."""

from collections.abc import Iterator
from typing import Literal

import torch

from anomalib_vae_attention.reference import require_images
from anomalib_vae_attention.resampling import border_distance
from anomalib_vae_attention.torch_model import BORDER_CELLS
from anomalib_vae_attention.vae import Posterior

CACHE_LIMIT = 2**30
"""Bytes that ``cache_features="auto"`` may use: 1 GiB, about 740 images at 256x256 with the default layers."""


class FeatureMoments:
    """Mean and covariance of raw grid features over every cell of every image, as sums that can be added up."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._outer = self._shift = torch.zeros(0, dtype=torch.float64)

    def update(self, features: torch.Tensor) -> None:
        """Add features of shape ``(B, C, h, w)`` to the sums."""
        rows = features.detach().double().transpose(0, 1).flatten(1)
        if self.count == 0:
            self._shift = rows.mean(1)
            self._sum, self._outer = torch.zeros_like(self._shift), torch.zeros_like(rows[:, :1] @ rows[:, :1].T)
        rows = rows - self._shift[:, None]
        self.count += rows.shape[1]
        self._sum += rows.sum(1)
        self._outer += rows @ rows.T

    def sums(self) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return count, sum, outer products and the shift that both are relative to, on the CPU."""
        return self.count, self._sum.cpu(), self._outer.cpu(), self._shift.cpu()

    def add(self, count: int, total: torch.Tensor, outer: torch.Tensor, shift: torch.Tensor) -> None:
        """Add the sums of another share of the images, as :meth:`sums` returns them, on the device of the result."""
        if self.count == 0:
            self.count, self._sum, self._outer, self._shift = count, total, outer, shift
        elif count:
            moved = shift - self._shift
            cross = moved[:, None] * total
            self._outer = self._outer + outer + cross + cross.T + count * moved[:, None] * moved
            self._sum = self._sum + total + count * moved
            self.count += count

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean ``(C,)`` and the covariance ``(C, C)``, float64.

        Raises:
            ValueError: If no features were added.
        """
        require_images(self.count)
        shifted = self._sum / self.count
        return shifted + self._shift, self._outer / self.count - shifted[:, None] * shifted


class FeatureCache:
    """Raw grid features of the training images, in memory, unless they would take more than a limit.

    Args:
        mode: ``"auto"`` keeps up to :data:`CACHE_LIMIT` bytes and forgets everything beyond it, ``True`` keeps all,
            ``False`` keeps nothing.
    """

    def __init__(self, mode: bool | Literal["auto"]) -> None:
        self.limit = {"auto": CACHE_LIMIT, True: float("inf"), False: -1}[mode]
        self.complete = True
        self._bytes = 0
        self._batches: list[torch.Tensor] = []

    def append(self, features: torch.Tensor) -> None:
        """Keep a batch of features of shape ``(B, C, h, w)`` if it still fits."""
        self._bytes += features.nbytes
        self.complete = self.complete and self._bytes <= self.limit
        if self.complete:
            self._batches.append(features.detach())
        else:
            self._batches.clear()

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Iterate over the batches in the order of their coming."""
        return iter(self._batches)


class PlaceShare:
    """How much of the variance of normal latents their place explains: much where all pictures have one layout.

    It is the analysis of variance's explained share: 0 for a texture, which looks alike everywhere, and 1 for a part
    that never moves. Latents are whitened by their posterior variance.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._square = self._variance = torch.zeros(())

    def update(self, posterior: Posterior) -> None:
        """Add the posteriors of a batch of normal images, mean of shape ``(B, d, h, w)``."""
        mean = posterior.mean.detach().double()
        self._count += len(mean)
        self._sum, self._square = self._sum + mean.sum(0), self._square + mean.square().sum(0)
        self._variance = posterior.variance.detach().double()

    def compute(self) -> float:
        """Return the share, from 0 to 1; 0 for fewer than two images, and for a grid that is all border.

        The :data:`.BORDER_CELLS` at the border are left out: the backbone's padding explains some of theirs.
        """
        if self._count < 2:
            return 0.0
        inside = border_distance(self._sum.shape[-2:]).to(self._sum.device) >= BORDER_CELLS
        if not inside.any():
            return 0.0
        total, square = self._sum[:, inside] / self._count, self._square[:, inside] / self._count
        within = (square - total.square()).mean(1) * self._count / (self._count - 1)
        whole = square.mean(1) - total.mean(1).square()
        return float(1 - (within / self._variance).sum() / (whole / self._variance).sum().clamp_min(1e-12))

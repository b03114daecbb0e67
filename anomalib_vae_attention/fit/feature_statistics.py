"""What the fit of the feature VAE reads features for: their moments, and a cache that spares a second reading."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from anomalib_vae_attention.reference import require_images
from anomalib_vae_attention.resampling import border_distance
from anomalib_vae_attention.torch_model import BORDER_CELLS

CACHE_LIMIT = 2**30
"""Bytes that ``cache_features="auto"`` may use: 1 GiB, about 740 images at 256x256 with the default layers."""


class Moments(NamedTuple):
    """What the fit of the grid and of the VAE takes from raw grid features.

    Attributes:
        mean: Mean of each channel over every cell of every image, of shape ``(C,)``, float64.
        covariance: Covariance of the channels, of shape ``(C, C)``, float64.
        place_share: Share of the variance of each channel that its place explains, from 0 to 1, of shape ``(C,)``: 0
            for a texture, which looks alike everywhere, and 1 for a part that never moves.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    place_share: torch.Tensor


class FeatureMoments:
    """Moments of raw grid features over every cell of every image, as sums that can be added up."""

    def __init__(self) -> None:
        self.count = 0
        self._at_place = self._square = self._outer = self._shift = torch.zeros(0, dtype=torch.float64)

    def update(self, features: torch.Tensor) -> None:
        """Add features of shape ``(B, C, h, w)`` to the sums."""
        features = features.detach().double()
        if self.count == 0:
            self._shift = features.mean((0, 2, 3))
            self._at_place, self._square = torch.zeros_like(features[0]), torch.zeros_like(features[0])
            self._outer = features.new_zeros(features.shape[1], features.shape[1])
        features = features - self._shift[:, None, None]
        rows = features.transpose(0, 1).flatten(1)
        self.count += rows.shape[1]
        self._at_place += features.sum(0)
        self._square += features.square().sum(0)
        self._outer += rows @ rows.T

    def sums(self) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return count, sum and squares at each place, outer products and what all are relative to, on the CPU."""
        return self.count, self._at_place.cpu(), self._square.cpu(), self._outer.cpu(), self._shift.cpu()

    def add(
        self, count: int, at_place: torch.Tensor, square: torch.Tensor, outer: torch.Tensor, shift: torch.Tensor
    ) -> None:
        """Add the sums of another share of the images, as :meth:`sums` returns them, on the device of the result."""
        if self.count == 0:
            self.count, self._at_place, self._square, self._outer, self._shift = count, at_place, square, outer, shift
        elif count:
            moved = shift - self._shift
            cross = moved[:, None] * at_place.sum((1, 2))
            self._outer = self._outer + outer + cross + cross.T + count * moved[:, None] * moved
            images, moved = count / at_place[0].numel(), moved[:, None, None]
            self._square = self._square + square + 2 * moved * at_place + images * moved.square()
            self._at_place = self._at_place + at_place + images * moved
            self.count += count

    def compute(self) -> Moments:
        """Return the moments.

        Raises:
            ValueError: If no features were added.
        """
        require_images(self.count)
        shifted = self._at_place.sum((1, 2)) / self.count
        covariance = self._outer / self.count - shifted[:, None] * shifted
        return Moments(shifted + self._shift, covariance, self._place_share())

    def _place_share(self) -> torch.Tensor:
        """Return the share of the variance ``(C,)`` that the place explains, by the analysis of variance.

        The :data:`.BORDER_CELLS` at the border are left out: the backbone's padding explains some of theirs.
        """
        images = self.count // self._at_place[0].numel()
        inside = border_distance(self._at_place.shape[-2:]).to(self._shift.device) >= BORDER_CELLS
        if images < 2 or not inside.any():
            return torch.zeros_like(self._shift)
        mean, square = self._at_place[:, inside] / images, self._square[:, inside] / images
        within = (square - mean.square()).mean(1) * images / (images - 1)
        whole = square.mean(1) - mean.mean(1).square()
        return (1 - within / whole.clamp_min(1e-12)).clamp(0, 1)


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

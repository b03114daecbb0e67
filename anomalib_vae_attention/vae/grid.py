"""The grid on which the feature VAE sees an image: backbone layers, pooled, resized, stacked and standardised."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import cast

import torch
from torch import nn

from anomalib_vae_attention.resampling import Resampling, SizedResamplings, pool_matrix, resize_matrix

GRID_STRIDE = 8
"""Pixels of the input image per cell of the grid, along each side."""
POOL_SIZES = (1, 3)
"""Widths of the averaging windows in a layer's own cells, odd, the finest first. A width of 1 keeps fine texture and
small parts; one of 3 stands the small shifts of parts that do not lie still. docs/ablation.md has both alone."""
LEAST_SHARE = 0.05
"""Least variance of channels at the finest width, over that at the others: they are what counterfactuals decode to."""
MIN_DEVIATION = 1e-6
"""Least standard deviation of a channel, so that nothing divides by that of a constant one."""
LAYER_BALANCE = 0.5
"""Weight of a layer in the variance of the features: 0 as its number of channels, 1 the same for every layer. In
homogeneous textures the number of its cells counts to the same power."""


class _Resamplings(SizedResamplings):
    """The resamplings between the layers and the grid of images of one size.

    Args:
        grid_size: Height and width of the grid in cells.
        sizes: Height and width of each layer in its own cells.
    """

    def __init__(self, grid_size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__(grid_size, list(sizes))
        self.grid_size = grid_size
        self.own_cells = [min(1.0, math.prod(size) / math.prod(grid_size)) for size in sizes]
        """Cells of each layer per cell of the grid, at most 1."""

        def pooled(width: int) -> Iterator[Resampling]:
            def pool_and_resize(side: int, cells: int) -> torch.Tensor:
                return resize_matrix(side, cells) @ pool_matrix(side, width)

            # A window of one cell averages nothing.
            matrix = pool_and_resize if width > 1 else resize_matrix
            return (Resampling(matrix, size, grid_size) for size in sizes)

        self.to_grid = nn.ModuleList(itertools.chain.from_iterable(map(pooled, POOL_SIZES)))
        self.from_grid = nn.ModuleList(Resampling(resize_matrix, grid_size, size) for size in sizes)


class FeatureGrid(nn.Module):
    """The fixed linear map from the backbone's layers to one grid of standardised features, with its adjoint.

    Each layer ``A_l`` is averaged over windows of each of the :data:`POOL_SIZES`, resized to the grid and stacked with
    the others. Then each channel is standardised by its mean and standard deviation over normal images. Each layer is
    weighted by its number of channels ``C_l`` to the power of ``-LAYER_BALANCE / 2``, lest layers with many channels
    drown the others. Those at the finest width count by the share of their variance that the place explains: where
    parts lie alike, detail can be compared with that of the very place; where not, only averages are alike.

    Homogeneous textures are the exception: one Gaussian says what detail is normal at any place, and energies are its
    likelihood. There the finest width counts more. A layer with fewer cells than the grid counts less, to the same
    power: each of its cells is there several times, and a likelihood would count each time.

    Args:
        channels: Number of channels of each layer.

    Attributes:
        channels: Number of channels of each part of the stack: every layer at the first width, then at the next.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self._layers = len(channels)
        self.channels = list(channels) * len(POOL_SIZES)
        ends = list(itertools.accumulate(self.channels, initial=0))
        self._parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
        self.register_buffer("mean", torch.zeros(ends[-1]))
        self.register_buffer("std", torch.ones(ends[-1]))
        self._resamplings = _Resamplings((0, 0), [])

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width of the grid that :meth:`prepare` was last called for, in cells."""
        return self._resamplings.grid_size

    def size_for(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the grid, in cells, for images of this height and width in pixels."""
        height, width = image_size
        return max(1, height // GRID_STRIDE), max(1, width // GRID_STRIDE)

    def prepare(self, image_size: Sequence[int], sizes: Sequence[tuple[int, int]]) -> None:
        """Build the resamplings for images of one size; does nothing when they are there already.

        Args:
            image_size: Height and width of the input image in pixels.
            sizes: Height and width of each layer in its own cells.
        """
        grid_size = self.size_for(image_size)
        if not self._resamplings.fits(grid_size, list(sizes)):
            self._resamplings = _Resamplings(grid_size, sizes).to(self.mean)

    def stack(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Pool, resize and stack the layers, without standardising them.

        Args:
            layers: Activations ``A_l`` of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            Raw grid features of shape ``(B, C, h, w)``, ``C`` the number of channels of all parts together.
        """
        # Flat, for runtimes whose convolutions have a layout of their own: it is changed once for all widths.
        flat = itertools.cycle([layer.flatten(0, 1) for layer in layers])
        parts = zip(self._resamplings.to_grid, flat, self.channels, strict=False)
        return torch.cat([resample(layer).unflatten(0, (-1, count)) for resample, layer, count in parts], dim=1)

    def standardise(self, raw: torch.Tensor) -> torch.Tensor:
        """Standardise raw grid features of shape ``(B, C, h, w)`` by the statistics of normal images."""
        return (raw - self.mean[:, None, None]) / self.std[:, None, None]

    @torch.no_grad()
    def fit(
        self, mean: torch.Tensor, covariance: torch.Tensor, place_share: torch.Tensor, mahalanobis: float = 0.0
    ) -> torch.Tensor:
        """Take the statistics of the raw grid features of normal images.

        Args:
            mean: Mean of each channel, of shape ``(C,)``, float64.
            covariance: Covariance of the channels, of shape ``(C, C)``, float64.
            place_share: Share of the variance of each channel that the place explains, from 0 to 1, of shape ``(C,)``.
            mahalanobis: How near energies are to the Mahalanobis distance, from 0 to 1; see :class:`.LeftOut`. Above 0
                the grid has to be prepared.

        Returns:
            Covariance of the standardised features, of shape ``(C, C)``, float64.
        """
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        deviation = deviation.clamp_min(MIN_DEVIATION)
        variance, finest = self._variance(mean.device, mahalanobis), slice(self._parts[self._layers - 1].stop)
        share = (variance * place_share)[finest].sum() / variance[finest].sum()
        variance[finest] *= share.clamp_min(max(LEAST_SHARE, mahalanobis))
        scale = deviation / variance.sqrt()
        self.mean.copy_(mean)
        self.std.copy_(scale)
        return covariance / scale / scale[:, None]

    def explained_by_place(self, place_share: torch.Tensor, mahalanobis: float = 0.0) -> float:
        """Return the share of the variance of the features that the place explains, every width alike, from 0 to 1.

        Args:
            place_share: The share of each channel, of shape ``(C,)``.
            mahalanobis: See :meth:`fit`.
        """
        variance = self._variance(place_share.device, mahalanobis)
        return float((variance * place_share).sum() / variance.sum())

    def _variance(self, device: torch.device, mahalanobis: float) -> torch.Tensor:
        """Return the variance that the balance of layers gives each channel, of shape ``(C,)``."""
        counts = torch.tensor(self.channels, device=device)
        variance = (counts.sum() / (len(counts) * counts)).pow(LAYER_BALANCE)
        if mahalanobis:
            own_cells = torch.tensor(self._resamplings.own_cells * len(POOL_SIZES), device=device)
            variance = variance * own_cells.pow(LAYER_BALANCE * mahalanobis)
        return variance.repeat_interleave(counts)

    def forward(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map layers ``A_l`` of shape ``(B, C_l, h_l, w_l)`` to standardised features ``F`` of ``(B, C, h, w)``."""
        return self.standardise(self.stack(layers))

    def adjoint(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Carry a gradient on the features back to the layers (vector-Jacobian product of ``forward``).

        Args:
            gradient: Gradient on the standardised features, of shape ``(B, C, h, w)``.

        Returns:
            Gradient on each layer, of shape ``(B, C_l, h_l, w_l)``.
        """
        parts = [
            cast("Resampling", to_grid).adjoint(gradient[:, part] / self.std[part, None, None])
            for to_grid, part in zip(self._resamplings.to_grid, self._parts, strict=True)
        ]
        return [reduce(torch.add, parts[layer :: self._layers]) for layer in range(self._layers)]

    def layers_of(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Undo the standardisation and resize each layer's channels to that layer's own resolution.

        Args:
            features: Standardised features of each layer at the finest width, of shape ``(B, C_l, h, w)``.

        Returns:
            Activations ``A_hat_l`` of shape ``(B, C_l, h_l, w_l)``. Detail finer than the grid is not restored.
        """
        return [
            from_grid(feature * self.std[part, None, None] + self.mean[part, None, None])
            for from_grid, feature, part in zip(self._resamplings.from_grid, features, self._parts, strict=False)
        ]

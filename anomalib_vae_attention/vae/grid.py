"""The grid on which the feature VAE sees an image: backbone layers, pooled, resized, stacked and standardised."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from anomalib_vae_attention.resampling import apply_separable, pool_matrix, resize_matrix

GRID_STRIDE = 8
"""Pixels of the input image per cell of the grid, along each side."""
POOL_SIZE = 3
"""Width of the averaging window in a layer's own cells, odd."""
MIN_DEVIATION = 1e-6
"""Least standard deviation of a channel, so that nothing divides by that of a constant one."""
LAYER_BALANCE = 0.5
"""Weight of a layer in the variance of the features: 0 as its number of channels, 1 the same for every layer."""


class FeatureGrid(nn.Module):
    """The fixed linear map from the backbone's layers to one grid of standardised features, with its adjoint.

    Each layer ``A_l`` is averaged over 3x3 windows, resized to the grid and stacked with the others; then each channel
    is standardised by its mean and standard deviation over normal images, and each layer weighted by its number
    of channels ``C_l`` to the power of ``-LAYER_BALANCE / 2``, lest layers with many channels drown the others.

    Args:
        channels: Number of channels of each layer.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        ends = list(itertools.accumulate(channels, initial=0))
        self._parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
        self.register_buffer("mean", torch.zeros(sum(channels)))
        self.register_buffer("std", torch.ones(sum(channels)))
        self.sizes: list[tuple[int, int]] = []
        self.grid_size: tuple[int, int] = (0, 0)

    def prepare(self, image_size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> None:
        """Build the resizing matrices for images of one size; does nothing when they are there already.

        Args:
            image_size: Height and width of the input image in pixels.
            sizes: Height and width of each layer in its own cells.
        """
        height, width = image_size
        grid_size = max(1, height // GRID_STRIDE), max(1, width // GRID_STRIDE)
        if self.sizes == list(sizes) and self.grid_size == grid_size:
            return
        self.grid_size = grid_size
        for layer, size in enumerate(sizes):
            for axis, side, cells in zip("hw", size, self.grid_size, strict=True):
                to_grid = resize_matrix(side, cells) @ pool_matrix(side, POOL_SIZE)
                self._set_matrix(f"to_grid_{layer}_{axis}", to_grid)
                self._set_matrix(f"from_grid_{layer}_{axis}", resize_matrix(cells, side))
        self.sizes = list(sizes)

    def _set_matrix(self, name: str, matrix: torch.Tensor) -> None:
        self.register_buffer(name, matrix.to(self.mean), persistent=False)

    def _matrices(self, kind: str, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.get_buffer(f"{kind}_{layer}_h"), self.get_buffer(f"{kind}_{layer}_w")

    def stack(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Pool, resize and stack the layers, without standardising them.

        Args:
            layers: Activations ``A_l`` of shape ``(B, C_l, h_l, w_l)``.

        Returns:
            Raw grid features of shape ``(B, C, h, w)`` with ``C = sum_l C_l``.
        """
        resized = []
        for index, layer in enumerate(layers):
            rows, columns = self._matrices("to_grid", index)
            resized.append(apply_separable(rows, layer, columns))
        return torch.cat(resized, dim=1)

    def standardise(self, raw: torch.Tensor) -> torch.Tensor:
        """Standardise raw grid features of shape ``(B, C, h, w)`` by the statistics of normal images."""
        return (raw - self.mean[:, None, None]) / self.std[:, None, None]

    @torch.no_grad()
    def fit(self, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        """Take the statistics of the raw grid features of normal images.

        Args:
            mean: Mean of each channel, of shape ``(C,)``, float64.
            covariance: Covariance of the channels, of shape ``(C, C)``, float64.

        Returns:
            Covariance of the standardised features, of shape ``(C, C)``, float64.
        """
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        deviation = deviation.clamp_min(MIN_DEVIATION)
        counts = torch.tensor(self.channels, device=mean.device)
        weight = (counts.sum() / (len(counts) * counts)).pow(LAYER_BALANCE / 2).repeat_interleave(counts)
        scale = deviation / weight
        self.mean.copy_(mean)
        self.std.copy_(scale)
        return covariance / scale / scale[:, None]

    def forward(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map layers ``A_l`` of shape ``(B, C_l, h_l, w_l)`` to standardised features ``F`` of ``(B, C, h, w)``."""
        return self.standardise(self.stack(layers))

    def adjoint(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Carry a gradient on the features back to the layers (vector-Jacobian product of ``forward``).

        Args:
            gradients: Gradient on each layer's standardised features, of shape ``(B, C_l, h, w)``.

        Returns:
            Gradient on each layer, of shape ``(B, C_l, h_l, w_l)``.
        """
        out = []
        for index, (gradient, part) in enumerate(zip(gradients, self._parts, strict=True)):
            rows, columns = self._matrices("to_grid", index)
            out.append(apply_separable(rows.T, gradient / self.std[part, None, None], columns.T))
        return out

    def layers_of(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Undo the standardisation and resize each layer's channels to that layer's own resolution.

        Args:
            features: Standardised features by layer, of shape ``(B, C_l, h, w)``.

        Returns:
            Activations ``A_hat_l`` of shape ``(B, C_l, h_l, w_l)``; fine detail, lost in pooling, is not restored.
        """
        out = []
        for index, (feature, part) in enumerate(zip(features, self._parts, strict=True)):
            rows, columns = self._matrices("from_grid", index)
            raw = feature * self.std[part, None, None] + self.mean[part, None, None]
            out.append(apply_separable(rows, raw, columns))
        return out

"""The 4x4 convolutions of stride 2 of several runs at once, as batched matrix products.

Each run has weights of its own. Grouped convolutions would do, but their kernels are slow; one kernel per run is bound
by its launch. With the image cut into blocks of 2x2 pixels, a window of the convolution is four neighbouring blocks, so
one matrix product of all blocks with all four parts of the weights is enough, and four of its results add up to each
output. Blocks are not repeated for each window, as they would be in the usual product over windows.

Signals are ``(R, B, h, w, C)``, of ``R`` runs and channels last; weights are PyTorch's with ``R`` in front.
"""

from math import gcd
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.dsprites.convolution import fold, patches

from .blocks import AddParts, FromBlocks, ToBlocks, ToParts

PIECES = 16
"""In how many pieces of each run gradients by weights are summed, where the rows can be divided by it."""


def _by_blocks(weight: torch.Tensor) -> torch.Tensor:
    """Sort weights ``(R, D, C, 4, 4)`` into a matrix from blocks to parts, shape ``(R, 4 C, 4 D)``."""
    runs, after, before = weight.shape[:3]
    taps = weight.view(runs, after, before, 2, 2, 2, 2)
    return taps.permute(0, 4, 6, 2, 3, 5, 1).reshape(runs, 4 * before, 4 * after)


class _Product(torch.autograd.Function):
    """Products ``(R, M, C) @ (R, C, D)`` of few columns and many rows.

    The gradient by the matrices is a sum over all rows, with little to do beside it: it is made in pieces, which a GPU
    computes at once.
    """

    @staticmethod
    def forward(ctx: Any, signal: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Multiply."""
        ctx.save_for_backward(signal, matrix)
        return torch.bmm(signal, matrix)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        """Carry the gradient back to signals and matrices."""
        signal, matrix = ctx.saved_tensors
        by_signal = torch.bmm(gradient, matrix.mT) if ctx.needs_input_grad[0] else None
        pieces = gcd(PIECES, signal.shape[1])
        rows, columns = (values.unflatten(1, (pieces, -1)).flatten(0, 1) for values in (signal, gradient))
        by_matrix = torch.bmm(rows.mT, columns).unflatten(0, (-1, pieces)).sum(1)
        return by_signal, by_matrix


def _multiply(signal: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply the channels of ``(R, B, h, w, C)`` by each run's matrix ``(R, C, D)``."""
    return _Product.apply(signal.flatten(1, 3), matrix).unflatten(1, signal.shape[1:4])


def convolve(signal: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve signals of several runs, each with its own weights.

    Args:
        signal: Shape ``(R, B, 2h, 2w, C)``, contiguous.
        weight: Shape ``(R, D, C, 4, 4)``.

    Returns:
        For each run ``F.conv2d(signal, weight, None, 2, 1)``, channels last, shape ``(R, B, h, w, D)``.
    """
    return AddParts.apply(_multiply(ToBlocks.apply(signal), _by_blocks(weight)))


def transposed(signal: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve signals of several runs, transposed: the adjoint of :func:`convolve`.

    Args:
        signal: Shape ``(R, B, h, w, C)``.
        weight: Shape ``(R, C, D, 4, 4)``.

    Returns:
        For each run ``F.conv_transpose2d(signal, weight, None, 2, 1)``, channels last, shape ``(R, B, 2h, 2w, D)``.
    """
    return FromBlocks.apply(_multiply(ToParts.apply(signal), _by_blocks(weight).mT))


def convolve_one_channel(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve images of one channel: a product over their windows, which are small here.

    Args:
        images: Shape ``(R, B, 2h, 2w)``, without a gradient.
        weight: Shape ``(R, D, 1, 4, 4)``, of the images' data type.
        bias: Shape ``(R, D)``, of the same type.

    Returns:
        For each run ``F.conv2d(images, weight, bias, 2, 1)``, channels last, shape ``(R, B, h, w, D)``.
    """
    runs, batch = images.shape[:2]
    windows = patches(images.flatten(0, 1))
    matrix = windows.view(len(windows), runs, -1).permute(1, 2, 0)
    made = _Product.apply(matrix, weight.flatten(2).mT) + bias[:, None]
    return made.view(runs, batch, *windows.shape[2:], -1)


def transposed_to_one_channel(signal: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve to images of one channel, transposed: a product whose windows are added up in single precision.

    Args:
        signal: Shape ``(R, B, h, w, C)``.
        weight: Shape ``(R, C, 1, 4, 4)``, of the signal's data type.
        bias: Shape ``(R, 1)``.

    Returns:
        For each run ``F.conv_transpose2d(signal, weight, bias, 2, 1)``, shape ``(R, B, 2h, 2w)``.
    """
    runs, batch, height, width, _ = signal.shape
    windows = _Product.apply(signal.flatten(1, 3), weight.flatten(2))
    images = fold(windows.permute(2, 0, 1).reshape(-1, runs * batch, height, width))
    return images.unflatten(0, (runs, batch)) + bias[:, :, None, None]


def mean_of_transposed(signal: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Average a transposed convolution over its places, without computing it.

    Each weight is multiplied by the sum of the signal over the places where it falls inside of the result.

    Args:
        signal: Shape ``(R, B, h, w, C)``.
        weight: Shape ``(R, C, D, 4, 4)``, of the same data type.

    Returns:
        The mean of :func:`transposed` over its places, shape ``(R, B, D)``.
    """
    runs, after, before = weight.shape[:3]
    height, width = signal.shape[2:4]
    places = 4 * height * width
    total = signal.sum(2, dtype=torch.promote_types(signal.dtype, torch.float32))
    rows = torch.stack([total - signal[:, :, 0], total, total, total - signal[:, :, -1]], 2)
    total = rows.sum(3)
    sums = torch.stack([total - rows[:, :, :, 0], total, total, total - rows[:, :, :, -1]], 3) / places
    matrix = weight.permute(0, 3, 4, 1, 2).reshape(runs, 16 * after, before)
    return torch.bmm(sums.flatten(2).to(matrix.dtype), matrix)


def rectify(signal: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Add each run's bias ``(R, C)`` to ``(R, B, h, w, C)``, and apply a ReLU."""
    return F.relu(signal + bias[:, None, None, None])

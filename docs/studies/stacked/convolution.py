"""The 4x4 convolutions of stride 2 of several runs at once, as batched matrix products.

Each run has weights of its own. Grouped convolutions would do, but their kernels are slow; one kernel per run is bound
by its launch. With the image cut into blocks of 2x2 pixels, a window of the convolution is four neighbouring blocks, so
one matrix product of all blocks with all four parts of the weights is enough, and four of its results add up to each
output. Blocks are not repeated for each window, as they would be in the usual product over windows.

Signals are ``(R, B, h, w, C)``, of ``R`` runs and channels last; weights are matrices as :mod:`.layout` makes them.
"""

from math import gcd
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from .blocks import CONSTANT, AddParts, FromBlocks, ToBlocks, ToParts
from .windows import KERNEL, PADDING, STRIDE, fold

PIECES = 16
"""At most in how many pieces of each run the gradients by weights are summed."""

TILE = 128 * 128
"""About what one unit of a GPU computes of a product."""


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
        tiles = max(1, matrix[0].numel() // TILE)
        pieces = gcd(PIECES // min(tiles**2, PIECES), signal.shape[1])
        rows, columns = (values.unflatten(1, (pieces, -1)).flatten(0, 1) for values in (signal, gradient))
        by_matrix = torch.bmm(rows.mT, columns)
        return by_signal, by_matrix.unflatten(0, (-1, pieces)).sum(1) if pieces > 1 else by_matrix


def _multiply(signal: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply the channels of ``(R, B, h, w, C)`` by each run's matrix ``(R, C, D)``."""
    return _Product.apply(signal.flatten(1, 3), matrix).unflatten(1, signal.shape[1:4])


def _with_bias(matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Append each run's bias ``(R, D)``, to be multiplied by the constant, to its matrix ``(R, C, D)``."""
    return torch.cat([matrix, F.pad(bias[:, None], (0, 0, 0, CONSTANT - 1))], 1)


def convolve(signal: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve signals of several runs, each with its own weights.

    Args:
        signal: Shape ``(R, B, 2h, 2w, C)``.
        matrix: From blocks to parts, shape ``(R, 4 C, 4 D)``.
        bias: Shape ``(R, D)``.

    Returns:
        For each run ``F.conv2d(signal, weight, bias, 2, 1)``, channels last, shape ``(R, B, h, w, D)``.
    """
    # One of the four parts is enough for the bias.
    matrix = _with_bias(matrix, F.pad(bias, (0, 3 * bias.shape[1])))
    return AddParts.apply(_multiply(ToBlocks.apply(signal), matrix))


def transposed(signal: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve signals of several runs, transposed: but for the bias the adjoint of :func:`convolve`.

    Args:
        signal: Shape ``(R, B, h, w, C)``.
        matrix: From parts to blocks, shape ``(R, 4 C, 4 D)``.
        bias: Shape ``(R, D)``.

    Returns:
        For each run ``F.conv_transpose2d(signal, weight, bias, 2, 1)``, channels last, shape ``(R, B, 2h, 2w, D)``.
    """
    return FromBlocks.apply(_multiply(ToParts.apply(signal), _with_bias(matrix, bias.repeat(1, 4))))


def convolve_one_channel(images: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve images of one channel: a product over their windows, which are small here.

    Args:
        images: Shape ``(R, B, 2h, 2w)``, without a gradient.
        matrix: Shape ``(R, 16, D)``, of the images' data type.
        bias: Shape ``(R, D)``, of the same type.

    Returns:
        For each run ``F.conv2d(images, weight, bias, 2, 1)``, channels last, shape ``(R, B, h, w, D)``.
    """
    runs, batch, height, width = images.shape
    padded = F.pad(images, [PADDING] * 4)
    windows = padded.unfold(2, KERNEL, STRIDE).unfold(3, KERNEL, STRIDE).permute(4, 5, 0, 1, 2, 3)
    # With the position fastest, as copying windows of four pixels each would be slow; and the constant.
    planes = images.new_ones(KERNEL**2 + 1, *windows.shape[2:])
    planes[:-1].view(windows.shape).copy_(windows)
    made = _Product.apply(planes.flatten(2).permute(1, 2, 0), torch.cat([matrix, bias[:, None]], 1))
    return made.view(runs, batch, height // 2, width // 2, -1)


def transposed_to_one_channel(signal: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve to images of one channel, transposed: a product whose windows are added up in single precision.

    Args:
        signal: Shape ``(R, B, h, w, C)``.
        matrix: Shape ``(R, C, 16)``, of the signal's data type.
        bias: Shape ``(R, 1)``.

    Returns:
        For each run ``F.conv_transpose2d(signal, weight, bias, 2, 1)``, shape ``(R, B, 2h, 2w)``.
    """
    runs, batch, height, width, _ = signal.shape
    windows = _Product.apply(signal.flatten(1, 3), matrix)
    images = fold(windows.permute(2, 0, 1).reshape(-1, runs * batch, height, width))
    return images.unflatten(0, (runs, batch)) + bias[:, :, None, None]


def adjoint(signal: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Carry gradients ``(R, B, h, w, D)`` back through :func:`convolve`, shape ``(R, B, 2h, 2w, C)``."""
    return transposed(signal, matrix.mT, matrix.new_zeros(len(matrix), matrix.shape[1] // 4))


def mean_adjoint(signal: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Average :func:`adjoint` over its places, without computing it.

    Each weight is multiplied by the sum of the signal over the places where it falls inside of the result.

    Args:
        signal: Shape ``(R, B, h, w, D)``.
        matrix: As for :func:`convolve`, of the same data type.

    Returns:
        Shape ``(R, B, C)``.
    """
    runs, before, after = len(matrix), matrix.shape[1] // 4, matrix.shape[2] // 4
    height, width = signal.shape[2:4]
    total = signal.sum(2, dtype=torch.promote_types(signal.dtype, torch.float32))
    rows = torch.stack([total - signal[:, :, 0], total, total, total - signal[:, :, -1]], 2)
    total = rows.sum(3)
    sums = torch.stack([total - rows[:, :, :, 0], total, total, total - rows[:, :, :, -1]], 3)
    taps = matrix.view(runs, 2, 2, before, 2, 2, after).permute(0, 4, 1, 5, 2, 6, 3)
    sums = (sums / (STRIDE**2 * height * width)).flatten(2).to(matrix.dtype)
    return torch.bmm(sums, taps.reshape(runs, -1, before))

"""The 4x4 convolutions of stride 2, and their transposes, in forms that a processor runs faster.

PyTorch's kernels are slow at three of the shapes that Kim and Mnih's networks need: one channel in, one channel out,
and the weight gradient of a transposed convolution. The functions here compute the same sums through matrix products,
and through the weight gradient of the plain convolution; they differ from PyTorch's by rounding only.
``docs/dsprites.md`` says what each brings.

Under ``torch.autocast`` they work in its data type, as PyTorch's do, but for sums of several windows: those are kept in
single precision.
"""

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

KERNEL, STRIDE, PADDING = 4, 2, 1


def working_type(like: torch.Tensor) -> torch.dtype:
    """Return the data type of matrix products: autocast's on the tensor's device where that is on, else its own."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def patches(images: torch.Tensor) -> torch.Tensor:
    """Cut images ``(B, 2h, 2w)`` into the windows of a convolution, shape ``(16, B, h, w)``."""
    padded = F.pad(images, [PADDING] * 4)
    windows = padded.unfold(1, KERNEL, STRIDE).unfold(2, KERNEL, STRIDE)
    # With the position fastest: copying windows of four pixels each would take several times as long.
    return windows.permute(3, 4, 0, 1, 2).flatten(0, 1).contiguous()


class _Fold(torch.autograd.Function):
    """Add windows ``(16, B, h, w)`` up where they overlap, to images ``(B, 2h, 2w)``: the adjoint of patches."""

    @staticmethod
    def forward(ctx: Any, windows: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Add up the windows, in single precision at least."""
        ctx.working = windows.dtype
        _, batch, height, width = windows.shape
        # Row 2(i + p) + r of the padded image gets row 2p + r of window i; columns alike.
        taps = windows.view(2, 2, 2, 2, batch, height, width)
        kept = torch.promote_types(windows.dtype, torch.float32)
        padded = windows.new_zeros(2, 2, batch, height + 1, width + 1, dtype=kept)
        for p in range(2):
            for q in range(2):
                padded[..., p : p + height, q : q + width] += taps[p, :, q]
        image = padded.permute(2, 3, 0, 4, 1).reshape(batch, 2 * height + 2, 2 * width + 2)
        return image[:, PADDING:-PADDING, PADDING:-PADDING]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        """Cut the gradient into windows."""
        return patches(gradient.to(ctx.working))


def convolve_one_channel(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Convolve images of one channel: one matrix product over their windows.

    Args:
        images: Shape ``(B, 1, 2h, 2w)``.
        weight: Shape ``(C, 1, 4, 4)``.
        bias: Shape ``(C,)``.

    Returns:
        ``F.conv2d(images, weight, bias, 2, 1)``, shape ``(B, C, h, w)``, channels last in memory.
    """
    images = images.to(working_type(images))
    windows = patches(images.squeeze(1)).permute(1, 2, 3, 0)
    return F.linear(windows, weight.flatten(1), bias).permute(0, 3, 1, 2)


def transposed_to_one_channel(signal: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve to images of one channel, transposed: one matrix product, whose windows are added up.

    Args:
        signal: Shape ``(B, C, h, w)``, channels last in memory.
        weight: Shape ``(C, 1, 4, 4)``.
        bias: Shape ``(1,)``.

    Returns:
        ``F.conv_transpose2d(signal, weight, bias, 2, 1)``, shape ``(B, 1, 2h, 2w)``.
    """
    batch, _, height, width = signal.shape
    windows = weight.flatten(1).T @ signal.permute(0, 2, 3, 1).flatten(0, 2).T
    return _Fold.apply(windows.view(-1, batch, height, width)).unsqueeze(1) + bias


class _Transposed(torch.autograd.Function):
    """A transposed convolution whose weight gradient is that of the plain one, its two arguments exchanged."""

    @staticmethod
    def forward(ctx: Any, signal: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Convolve, transposed."""
        ctx.types = signal.dtype, weight.dtype, bias.dtype
        working = working_type(signal)
        signal, weight = signal.to(working), weight.to(working)
        ctx.save_for_backward(signal, weight)
        return F.conv_transpose2d(signal, weight, bias.to(working), STRIDE, PADDING)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]  # noqa: ANN401
        """Carry the gradient back to signal, weight and bias."""
        signal, weight = ctx.saved_tensors
        by_signal = F.conv2d(gradient, weight, None, STRIDE, PADDING)
        by_weight = torch.ops.aten.convolution_backward(
            signal,
            gradient,
            weight,
            None,
            [STRIDE] * 2,
            [PADDING] * 2,
            [1, 1],
            False,  # noqa: FBT003
            [0, 0],
            1,
            [False, True, False],
        )[1]
        by_bias = gradient.sum((0, 2, 3))
        return by_signal.to(ctx.types[0]), by_weight.to(ctx.types[1]), by_bias.to(ctx.types[2])


def transposed(signal: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return ``F.conv_transpose2d(signal, weight, bias, 2, 1)``, shape ``(B, D, 2h, 2w)``.

    Signal, weight and bias are of shapes ``(B, C, h, w)``, ``(C, D, 4, 4)`` and ``(D,)``.
    """
    return _Transposed.apply(signal, weight, bias)


def mean_of_transposed(signal: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Average a transposed convolution over its places, without computing it.

    Each weight is multiplied by the sum of the signal over the places where it falls inside of the result: all, but for
    the first row and column of places or the last.

    Returns:
        ``F.conv_transpose2d(signal, weight, None, 2, 1).mean((2, 3))``, of shape ``(N, D)`` for a signal
        ``(N, C, h, w)`` and a weight ``(C, D, 4, 4)``.
    """
    height, width = signal.shape[-2:]
    total = signal.sum(-2, dtype=torch.promote_types(signal.dtype, torch.float32))
    rows = torch.stack([total - signal[..., 0, :], total, total, total - signal[..., -1, :]], -2)
    total = rows.sum(-1)
    sums = torch.stack([total - rows[..., 0], total, total, total - rows[..., -1]], -1)
    return sums.flatten(1) @ weight.permute(0, 2, 3, 1).flatten(0, 2) / (STRIDE**2 * height * width)

"""Cutting images into the windows of a 4x4 convolution of stride 2, and adding windows up to images."""

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

KERNEL, STRIDE, PADDING = 4, 2, 1


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


def fold(windows: torch.Tensor) -> torch.Tensor:
    """Add windows ``(16, B, h, w)`` up where they overlap, to images ``(B, 2h, 2w)``, in single precision at least."""
    return _Fold.apply(windows)

"""Images cut into blocks of 2x2 pixels and back, each in one copy, and differentiable.

What is multiplied by weights gets a column of ones beside its channels, so that the bias is one more row of the
weights: neither it nor its gradient takes a pass of its own.
"""

from typing import Any

import torch

CONSTANT = 8
"""Columns added for the bias: the first is 1, the others are 0 and keep the rows aligned."""


def _pixels(blocks: torch.Tensor, channels: int) -> torch.Tensor:
    """View the pixels inside the border of blocks ``(R, B, h + 1, w + 1, 4 C + ...)``: ``(R, B, h, 2, w, 2, C)``.

    The border is one pixel wide, so pixel ``2t + e`` lies in block ``t + e``, in its row ``1 - e``.
    """
    runs, batch, height, width, _ = blocks.shape
    by_run, by_image, by_row, by_column, _ = blocks.stride()
    shape = (runs, batch, height - 1, 2, width - 1, 2, channels)
    stride = (by_run, by_image, by_row, by_row - 2 * channels, by_column, by_column - channels, 1)
    return blocks.as_strided(shape, stride, blocks.storage_offset() + 3 * channels)


def _parts(products: torch.Tensor, channels: int) -> torch.Tensor:
    """View the four parts of each output, of products ``(R, B, h + 1, w + 1, 4 D + ...)``: ``(R, B, h, w, 2, 2, D)``.

    Output ``o`` takes part ``p`` of block ``o + p``, by rows and by columns.
    """
    runs, batch, height, width, _ = products.shape
    by_run, by_image, by_row, by_column, _ = products.stride()
    shape = (runs, batch, height - 1, width - 1, 2, 2, channels)
    stride = (by_run, by_image, by_row, by_column, by_row + 2 * channels, by_column + channels, 1)
    return products.as_strided(shape, stride, products.storage_offset())


def _wide(signal: torch.Tensor, channels: int) -> torch.Tensor:
    """View a contiguous signal as words of 64 bits, if its channels fill them: copies are faster the wider they are."""
    return signal if channels * signal.element_size() % 8 else signal.view(torch.int64)


def _room(signal: torch.Tensor, height: int, width: int, *, constant: bool) -> torch.Tensor:
    """Make room for blocks or parts, 0 but for the constant."""
    runs, batch, _, _, channels = signal.shape
    made = signal.new_zeros(runs, batch, height + 1, width + 1, 4 * channels + CONSTANT * constant)
    if constant:
        made[..., 4 * channels] = 1
    return made


def _to_blocks(signal: torch.Tensor, *, constant: bool) -> torch.Tensor:
    runs, batch, height, width, channels = signal.shape
    blocks = _room(signal, height // 2, width // 2, constant=constant)
    source, target = (_wide(values, channels) for values in (signal.contiguous(), blocks))
    channels = source.shape[-1]
    _pixels(target, channels).copy_(source.view(runs, batch, height // 2, 2, width // 2, 2, channels))
    return blocks


def _from_blocks(blocks: torch.Tensor, channels: int) -> torch.Tensor:
    runs, batch, height, width, _ = blocks.shape
    source = _wide(blocks.contiguous(), channels)
    pixels = _pixels(source, channels * blocks.element_size() // source.element_size())
    return pixels.reshape(runs, batch, 2 * height - 2, 2 * width - 2, -1).view(blocks.dtype)


def _add_parts(products: torch.Tensor, channels: int) -> torch.Tensor:
    return _parts(products.contiguous(), channels).sum((-3, -2))


def _to_parts(signal: torch.Tensor, *, constant: bool) -> torch.Tensor:
    channels = signal.shape[-1]
    products = _room(signal, *signal.shape[2:4], constant=constant)
    source, target = (_wide(values, channels) for values in (signal.contiguous(), products))
    _parts(target, source.shape[-1]).copy_(source[..., None, None, :].expand(-1, -1, -1, -1, 2, 2, -1))
    return products


class ToBlocks(torch.autograd.Function):
    """Cut ``(R, B, 2h, 2w, C)``, with a border of one pixel, into blocks ``(R, B, h + 1, w + 1, 4 C + 8)``."""

    @staticmethod
    def forward(ctx: Any, signal: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Cut, and add the constant."""
        ctx.channels = signal.shape[-1]
        return _to_blocks(signal, constant=True)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        """Put together again, without border and constant."""
        return _from_blocks(gradient, ctx.channels)


class FromBlocks(torch.autograd.Function):
    """Put blocks ``(R, B, h + 1, w + 1, 4 C)`` together, and leave out the border, to ``(R, B, 2h, 2w, C)``."""

    @staticmethod
    def forward(ctx: Any, blocks: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Put together."""
        del ctx
        return _from_blocks(blocks, blocks.shape[-1] // 4)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        """Cut."""
        del ctx
        return _to_blocks(gradient, constant=False)


class AddParts(torch.autograd.Function):
    """Add the parts ``(R, B, h + 1, w + 1, 4 D)`` of each output up, to ``(R, B, h, w, D)``."""

    @staticmethod
    def forward(ctx: Any, products: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Add up."""
        del ctx
        return _add_parts(products, products.shape[-1] // 4)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        """Hand out."""
        del ctx
        return _to_parts(gradient, constant=False)


class ToParts(torch.autograd.Function):
    """Hand each input ``(R, B, h, w, D)`` out to its four parts, ``(R, B, h + 1, w + 1, 4 D + 8)``."""

    @staticmethod
    def forward(ctx: Any, signal: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Hand out, and add the constant."""
        ctx.channels = signal.shape[-1]
        return _to_parts(signal, constant=True)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        """Add up, without the constant."""
        return _add_parts(gradient, ctx.channels)

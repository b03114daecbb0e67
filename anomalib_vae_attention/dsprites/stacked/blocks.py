"""Images cut into blocks of 2x2 pixels, each there and back in one copy, and differentiable."""

from typing import Any

import torch


def _pixels(blocks: torch.Tensor, channels: int) -> torch.Tensor:
    """View the pixels inside the border of blocks ``(R, B, h + 1, w + 1, 4 C)``: ``(R, B, h, 2, w, 2, C)``.

    The border is one pixel wide, so pixel ``2t + e`` lies in block ``t + e``, in its row ``1 - e``.
    """
    runs, batch, height, width, _ = blocks.shape
    by_run, by_image, by_row, by_column, _ = blocks.stride()
    shape = (runs, batch, height - 1, 2, width - 1, 2, channels)
    stride = (by_run, by_image, by_row, by_row - 2 * channels, by_column, by_column - channels, 1)
    return blocks.as_strided(shape, stride, blocks.storage_offset() + 3 * channels)


def _parts(products: torch.Tensor, channels: int) -> torch.Tensor:
    """View the four products that add up to each output: of ``(R, B, h + 1, w + 1, 4 D)``, ``(R, B, h, w, 2, 2, D)``.

    Output ``o`` takes part ``p`` of block ``o + p``, by rows and by columns.
    """
    runs, batch, height, width, _ = products.shape
    by_run, by_image, by_row, by_column, _ = products.stride()
    shape = (runs, batch, height - 1, width - 1, 2, 2, channels)
    stride = (by_run, by_image, by_row, by_column, by_row + 2 * channels, by_column + channels, 1)
    return products.as_strided(shape, stride, products.storage_offset())


class ToBlocks(torch.autograd.Function):
    """Cut ``(R, B, 2h, 2w, C)``, with a border of one pixel, into blocks ``(R, B, h + 1, w + 1, 4 C)``."""

    @staticmethod
    def forward(ctx: Any, signal: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Cut."""
        del ctx
        return _to_blocks(signal)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        """Put together again, without the border."""
        del ctx
        return _from_blocks(gradient)


class FromBlocks(torch.autograd.Function):
    """Put blocks together, and leave out the border: the adjoint of :class:`ToBlocks`."""

    @staticmethod
    def forward(ctx: Any, blocks: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Put together."""
        del ctx
        return _from_blocks(blocks)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        """Cut."""
        del ctx
        return _to_blocks(gradient)


class AddParts(torch.autograd.Function):
    """Add the parts ``(R, B, h + 1, w + 1, 4 D)`` of each output up, to ``(R, B, h, w, D)``."""

    @staticmethod
    def forward(ctx: Any, products: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Add up."""
        del ctx
        return _add_parts(products)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        """Hand out."""
        del ctx
        return _to_parts(gradient)


class ToParts(torch.autograd.Function):
    """Hand each input ``(R, B, h, w, D)`` out to its four parts: the adjoint of :class:`AddParts`."""

    @staticmethod
    def forward(ctx: Any, signal: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Hand out."""
        del ctx
        return _to_parts(signal)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        """Add up."""
        del ctx
        return _add_parts(gradient)


def _wide(signal: torch.Tensor, channels: int) -> torch.Tensor:
    """View a contiguous signal as words of 64 bits, if its channels fill them: copies are faster the wider they are."""
    return signal if channels * signal.element_size() % 8 else signal.view(torch.int64)


def _to_blocks(signal: torch.Tensor) -> torch.Tensor:
    runs, batch, height, width, channels = signal.shape
    blocks = signal.new_zeros(runs, batch, height // 2 + 1, width // 2 + 1, 4 * channels)
    source, target = (_wide(values, channels) for values in (signal.contiguous(), blocks))
    channels = source.shape[-1]
    _pixels(target, channels).copy_(source.view(runs, batch, height // 2, 2, width // 2, 2, channels))
    return blocks


def _from_blocks(blocks: torch.Tensor) -> torch.Tensor:
    runs, batch, height, width, channels = blocks.shape
    source = _wide(blocks.contiguous(), channels // 4)
    pixels = _pixels(source, source.shape[-1] // 4)
    return pixels.reshape(runs, batch, 2 * height - 2, 2 * width - 2, -1).view(blocks.dtype)


def _add_parts(products: torch.Tensor) -> torch.Tensor:
    return _parts(products.contiguous(), products.shape[-1] // 4).sum((-3, -2))


def _to_parts(signal: torch.Tensor) -> torch.Tensor:
    runs, batch, height, width, channels = signal.shape
    products = signal.new_zeros(runs, batch, height + 1, width + 1, 4 * channels)
    source, target = (_wide(values, channels) for values in (signal.contiguous(), products))
    _parts(target, source.shape[-1]).copy_(source[..., None, None, :].expand(-1, -1, -1, -1, 2, 2, -1))
    return products

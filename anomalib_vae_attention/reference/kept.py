"""The latents of the images that a normal reference is built from, while it is."""

from collections.abc import Iterator

import torch

BLOCK = 256
"""Images whose latents lie in one tensor: for 64 latents on a 32x32 grid so large (32 MiB) that the C library gives the
memory back when it is freed, and takes it page by page as it is filled."""


class KeptLatents:
    """Posterior means of images in half precision, of shape ``(d, h, w)`` each, in the memory of the CPU.

    It has the length, the items and their order of a list; an item that is set is copied.
    """

    def __init__(self) -> None:
        self._blocks: list[torch.Tensor] = []
        self._count = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return self._count

    def __getitem__(self, number: int) -> torch.Tensor:
        """Return the latents of one image, not copied; an ``IndexError`` where there is none."""
        if not 0 <= number < self._count:
            msg = f"There is no image {number} among {self._count}."
            raise IndexError(msg)
        return self._blocks[number // BLOCK][number % BLOCK]

    def __setitem__(self, number: int, mean: torch.Tensor) -> None:
        """Put other latents in the place of an image's."""
        self[number].copy_(mean)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Go through the latents of the images."""
        return (self[number] for number in range(self._count))

    def append(self, mean: torch.Tensor) -> None:
        """Add the latents of an image."""
        if self._count == BLOCK * len(self._blocks):
            self._blocks.append(torch.empty(BLOCK, *mean.shape, dtype=torch.half))
        self._count += 1
        self[self._count - 1] = mean

    def row(self, number: int) -> torch.Tensor:
        """Return the latents of one row of cells, of shape ``(N, d, w)``."""
        return torch.cat([block[:, :, number] for block in self._blocks])[: self._count]

    def to_bytes(self, centre: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Make a byte of each latent, one block after the other, so that it never takes more memory.

        They are stored relative to their mean at each cell: a byte then holds the differences that count, and a search
        that expands the square loses no digits.

        Args:
            centre: Mean of the images, of shape ``(d, h, w)``.
            scale: Factor of each latent that whitens, of shape ``(d,)``.

        Returns:
            The step of each latent, of shape ``(d,)``: after the call items are 8-bit integers, whitened, relative to
            the centre and in steps.
        """
        whitening = scale[:, None, None]

        def departure(mean: torch.Tensor) -> torch.Tensor:
            return (mean.to(centre.device).float() - centre) * whitening

        # One image after the other: larger tensors that come and go would leave holes in the heap.
        greatest = torch.zeros_like(scale)
        for mean in self:
            torch.maximum(greatest, departure(mean).abs().amax((1, 2)), out=greatest)
        step = (greatest / torch.iinfo(torch.int8).max).clamp_min(torch.finfo(torch.float32).tiny)
        for number, block in enumerate(self._blocks):
            steps = torch.empty(block.shape, dtype=torch.int8)
            for place, mean in enumerate(block[: self._count - BLOCK * number]):
                steps[place] = (departure(mean) / step[:, None, None]).round()
            self._blocks[number] = steps
        return step

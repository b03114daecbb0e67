"""The latents of the images that a normal reference is built from, while it is."""

import logging
from collections.abc import Iterator

import torch

logger = logging.getLogger(__name__)

GREATEST = torch.iinfo(torch.int8).max
"""Most steps that a latent is from 0."""
BLOCK = 512
"""Images whose latents lie in one tensor: for 64 latents on a 32x32 grid so large (32 MiB) that the C library gives the
memory back when it is freed, and takes it page by page as it is filled. Tensors of single images, however small, would
lie between those that come and go, and leave holes where these do not fit."""


class KeptLatents:
    """Posterior means of images, of shape ``(d, h, w)`` each, a byte per latent, in the memory of their device.

    It has the length, the items and their order of a list. An item is what was put in but for the rounding: to 1/254 of
    the greatest that the latent has in the image, until :meth:`align` makes the steps those of all images.
    """

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []
        self._step: list[torch.Tensor] = []
        self._count = self._seen = 0
        self._random = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        """Return the number of images."""
        return self._count

    def _place(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the steps of an image ``(d, h, w)``, 8-bit integers, and the step of each latent ``(d, 1, 1)``."""
        if not 0 <= number < len(self):
            msg = f"There is no image {number} among {len(self)}."
            raise IndexError(msg)
        block, place = divmod(number, BLOCK)
        return self._steps[block][place], self._step[block][place]

    def __getitem__(self, number: int) -> torch.Tensor:
        """Return the latents of one image, of shape ``(d, h, w)``; an ``IndexError`` where there is none."""
        steps, step = self._place(number)
        return steps * step

    def __setitem__(self, number: int, mean: torch.Tensor) -> None:
        """Put other latents ``(d, h, w)`` in the place of an image's; an ``IndexError`` where there is none."""
        steps, step = self._place(number)
        step.copy_(mean.abs().amax((1, 2), keepdim=True) / GREATEST).clamp_min_(torch.finfo(torch.float32).tiny)
        steps.copy_((mean / step).round())

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Go through the latents of the images."""
        return (self[number] for number in range(len(self)))

    def append(self, mean: torch.Tensor) -> None:
        """Add the latents of an image, of shape ``(d, h, w)``."""
        if len(self) == BLOCK * len(self._steps):
            self._steps.append(mean.new_empty(BLOCK, *mean.shape, dtype=torch.int8))
            self._step.append(mean.new_empty(BLOCK, len(mean), 1, 1))
        self._count += 1
        self[len(self) - 1] = mean

    def sample(self, mean: torch.Tensor, most: int) -> None:
        """Add the latents of an image ``(d, h, w)``, but keep a fair random sample of at most so many images.

        Vitter, "Random Sampling with a Reservoir" (1985), seeded. To be called for every image, with the same ``most``.
        """
        self._seen += 1
        if len(self) < most:
            self.append(mean)
            return
        if self._seen == most + 1:
            logger.warning(
                "More than max_exemplars=%d normal images: a random sample of that size is kept. "
                "reference='gaussian' learns from all of them in constant memory.",
                most,
            )
        place = int(torch.randint(self._seen, (1,), generator=self._random))
        if place < most:
            self[place] = mean

    def align(self, centre: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Whiten the latents, relative to their mean at each cell, in steps that are the same for all images.

        A byte then holds the differences that count, and a search that expands the square loses no digits.

        Args:
            centre: Mean of the images, of shape ``(d, h, w)``.
            scale: Factor of each latent that whitens, of shape ``(d,)``.

        Returns:
            The step of each latent, of shape ``(d,)``.
        """
        whitening, greatest = scale[:, None, None], torch.zeros_like(scale)
        for mean in self:
            torch.maximum(greatest, ((mean - centre) * whitening).abs().amax((1, 2)), out=greatest)
        common = (greatest / GREATEST).clamp_min(torch.finfo(torch.float32).tiny)
        for number, mean in enumerate(self):
            steps, step = self._place(number)
            step.copy_(common[:, None, None])
            steps.copy_(((mean - centre) * whitening / step).round())
        return common

    def row(self, number: int) -> torch.Tensor:
        """Return the steps of one row of cells, 8-bit integers of shape ``(N, d, w)``."""
        ends = range(len(self), 0, -BLOCK)
        return torch.cat([steps[:end, :, number] for steps, end in zip(self._steps, ends, strict=True)])

"""Training images that are kept from the model, to calibrate on."""

import math
import random
from collections.abc import Iterator
from typing import Any

import torch

HELD_OUT_LIMIT = 500
"""Most images that are held out: they stay in memory until the end of the fit, 0.75 MiB each at 256x256."""


class HeldOut:
    """Training images that the model does not learn from: chosen by file, kept until the fit is done.

    Args:
        loader: Loader of the training images, with one of anomalib's data sets.
        share: Share of the images to hold out, in ``(0, 1)``.

    Raises:
        ValueError: If the loader does not know its files, or there are fewer than two.
    """

    def __init__(self, loader: Any, share: float) -> None:  # noqa: ANN401
        samples = getattr(loader.dataset, "samples", None)
        if samples is None:
            msg = (
                "NormalQuantile can only hold out images of anomalib's data sets, whose files are known: use "
                "held_out=0 and a validation set of normal images that are neither trained nor tested on."
            )
            raise ValueError(msg)
        files = sorted({str(file) for file in samples["image_path"]})
        if len(files) < 2:
            msg = f"NormalQuantile holds out training images: there must be two or more, but there are {len(files)}."
            raise ValueError(msg)
        count = min(max(1, math.floor(share * len(files))), HELD_OUT_LIMIT, len(files) - 1)
        self.files = set(random.Random(0).sample(files, count))  # noqa: S311 - nothing secret
        self.images: list[torch.Tensor] = []

    def remaining(self, image_path: list[str]) -> torch.Tensor:
        """Say which images of a batch are to be learnt from, as a boolean tensor of shape ``(B,)``."""
        return torch.tensor([str(file) not in self.files for file in image_path], dtype=torch.bool)

    def keep(self, image: torch.Tensor) -> None:
        """Keep images of shape ``(B, 3, H, W)`` that were held out."""
        self.images += list(image.detach().cpu())

    def batches(self, size: int = 16) -> Iterator[torch.Tensor]:
        """Iterate over the images that were kept, in batches of at most a size."""
        for start in range(0, len(self.images), size):
            yield torch.stack(self.images[start : start + size])

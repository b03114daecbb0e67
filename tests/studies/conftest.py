"""Images that the tests of stacked runs share."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def bits() -> torch.Tensor:
    """Draw 300 white rectangles, at one bit per pixel."""
    generator = torch.Generator().manual_seed(0)
    images = np.zeros((300, 64, 64), np.uint8)
    for image, (y, x, height, width) in zip(images, torch.randint(5, 32, (300, 4), generator=generator), strict=True):
        image[y : y + height, x : x + width] = 1
    return torch.from_numpy(np.packbits(images).reshape(300, 512))

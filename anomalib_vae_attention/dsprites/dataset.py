"""dSprites as a data set for PyTorch: images by index or by ground-truth factors, unpacked when they are asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from . import official
from .drawing import FACTOR_SIZES, FACTORS
from .store import FORMAT_VERSION, IMAGES, draw_all, ensure_images, read_images, unpack


class Batch(NamedTuple):
    """Images with the factors that made them.

    Attributes:
        image: Pixels 0 and 1, float32, of shape ``(B, 1, 64, 64)``; of one image ``(1, 64, 64)``.
        factors: Index of each factor's value, int64, of shape ``(B, 5)``; of one image ``(5,)``.
    """

    image: torch.Tensor
    factors: torch.Tensor


class DSprites(Dataset):
    """All 737,280 images of dSprites, read from a file of 360 MiB that is made on first use.

    The images are drawn by the package, unless the published file is given. Their factors,
    the slowest of the index first, are shape (square, ellipse, heart), scale (6 values from 0.5 to 1), orientation (40
    values from 0 to 2 pi, both ends included, so the first and last images are the same), x and y (32 values each). The
    published file has the constant colour as another factor; it is left out here.

    Args:
        root: Folder to keep the images in.
        npz: The published file ``dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz``, to be used instead of drawing.

    Raises:
        FileNotFoundError: If ``npz`` does not exist.
        ValueError: If the published file is truncated or altered.
        OSError: If ``root`` cannot be written to.

    Example:
        >>> data = DSprites("./datasets/dSprites")
        >>> factors = data.sample_factors(4, torch.Generator().manual_seed(0))
        >>> data.images_of(factors).shape
        torch.Size([4, 1, 64, 64])
    """

    factors = FACTORS
    factor_sizes = FACTOR_SIZES

    def __init__(self, root: Path | str = "./datasets/dSprites", npz: Path | str | None = None) -> None:
        name, images = f"drawn-{FORMAT_VERSION}.bits", draw_all()
        if npz is not None:
            name, images = "official.bits", official.read_images(Path(npz))
        self.file = Path(root, name)
        ensure_images(self.file, images)

    def __len__(self) -> int:
        """Return the number of images."""
        return IMAGES

    def __getitem__(self, index: int | torch.Tensor | Sequence[int]) -> Batch:
        """Return one image, or a batch where there are several indices; only these images are unpacked.

        Raises:
            IndexError: If an index is not from 0 to 737,279.
        """
        indices = torch.as_tensor(index)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < IMAGES:
            msg = f"index {index} is out of range: dSprites has the images 0 to {IMAGES - 1}"
            raise IndexError(msg)
        pixels = torch.from_numpy(unpack(read_images(self.file, indices.numpy()))).to(torch.float32).unsqueeze(-3)
        return Batch(pixels, factors_at(indices))

    def sample_factors(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw every factor uniformly and independently, ``count`` times: factor indices of shape ``(count, 5)``."""
        return sample_factors(self.factor_sizes, count, generator)

    def images_of(self, factors: torch.Tensor) -> torch.Tensor:
        """Return the images ``(B, 1, 64, 64)`` of factor indices ``(B, 5)``; errors as :func:`index_of`."""
        return self[index_of(factors)].image


def sample_factors(sizes: Sequence[int], count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw ``count`` values of every factor, uniformly and independently; shape ``(count, len(sizes))``."""
    return torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], 1)


def index_of(factors: torch.Tensor) -> torch.Tensor:
    """Return the index in the data set, from 0 to 737,279, of images with factor indices ``(..., 5)``; shape ``(...)``.

    Raises:
        IndexError: If a factor index is out of range, naming the factor.
        ValueError: If the last dimension is not the five factors.
    """
    if factors.shape[-1] != len(FACTORS):
        msg = f"factors has shape {tuple(factors.shape)}; its last dimension must be the {len(FACTORS)} of {FACTORS}"
        raise ValueError(msg)
    columns = factors.unbind(-1)
    for name, size, values in zip(FACTORS, FACTOR_SIZES, columns, strict=True):
        if ((values < 0) | (values >= size)).any():
            msg = f"factor {name} has an index from 0 to {size - 1}, but {values.tolist()} was asked for"
            raise IndexError(msg)
    return torch.as_tensor(np.ravel_multi_index(tuple(column.numpy() for column in columns), FACTOR_SIZES))


def factors_at(index: torch.Tensor) -> torch.Tensor:
    """Return the factor indices, shape ``(..., 5)``, of images at given indices ``(...)`` in the data set."""
    return torch.from_numpy(np.stack(np.unravel_index(index.numpy(), FACTOR_SIZES), -1)).to(torch.int64)

"""Keeping dSprites on disk at one bit per pixel, whole or not at all."""

import os
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from anomalib_vae_attention.common.atomic_files import explaining, replacing

from .drawing import FACTOR_SIZES, IMAGE_BYTES, SIZE, draw_grid

FORMAT_VERSION = 1
"""Version of the drawing; to be raised with every change that alters a pixel."""

IMAGES = int(np.prod(FACTOR_SIZES))
"""Number of images, 737,280."""


def draw_all() -> Iterator[bytes]:
    """Draw all images in the order of the index, the 1024 places of one shape, size and orientation at a time."""
    for shape, scale, orientation in product(*map(range, FACTOR_SIZES[:3])):
        yield draw_grid(shape, scale, orientation).tobytes()


def ensure_images(file: Path, images: Iterable[bytes]) -> None:
    """Write the images unless they are there already; ``images``, which gives them as bits, is not asked then.

    Of several processes that come at once, one writes and the others wait. A truncated file is replaced.

    Raises:
        ValueError: If ``images`` are not all of them.
        OSError: If the file cannot be written, naming it; the subclass and number tell why. Nothing is left behind.
    """
    size = IMAGES * IMAGE_BYTES
    with explaining(f"{file}: the {size >> 20} MiB of dSprites cannot be kept there", "name another root"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")):
            if file.is_file() and file.stat().st_size == size:
                return
            with replacing(file) as temporary:
                with temporary.open("wb") as stream:
                    stream.writelines(images)
                length = temporary.stat().st_size
                if length != size:
                    msg = f"{length / IMAGE_BYTES:g} images were to be kept, but dSprites has {IMAGES}"
                    raise ValueError(msg)


def read_images(file: Path, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Read the images at given indices ``(...)`` from a file of :func:`ensure_images`, as bits ``(..., 512)``."""
    # Not mapped: the system maps what lies around each image, too, and counts it as the process's memory.
    with file.open("rb", buffering=0) as stream:
        parts = [os.pread(stream.fileno(), IMAGE_BYTES, IMAGE_BYTES * index) for index in indices.ravel().tolist()]
    return np.frombuffer(bytearray(b"".join(parts)), np.uint8).reshape(*indices.shape, IMAGE_BYTES)


def unpack(bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpack images ``(..., 512)`` of bits to pixels 0 and 1, shape ``(..., 64, 64)``."""
    return np.unpackbits(bits, axis=-1).reshape(*bits.shape[:-1], SIZE, SIZE)

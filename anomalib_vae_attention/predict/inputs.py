"""The images to predict: found in files, folders and patterns, named once each, and read ahead."""

import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalib_vae_attention.common.folders import kind_of, pair_masks
from anomalib_vae_attention.common.images import read_upright
from anomalib_vae_attention.common.mvtec_layout import IMAGE_SUFFIXES, MASKS, TEST, list_images

MOST_PIXELS = 2**22
"""Pixels of all images of a batch together: 48 MiB of floats."""


class Input(NamedTuple):
    """An image to predict.

    Attributes:
        path: Its file, absolute.
        name: What its pictures are called: its path below the folder that all inputs lie in.
        defective: What is known of it: whether it shows a defect, or ``None``.
        true_mask: The file of its true mask, or ``None``.
    """

    path: Path
    name: str
    defective: bool | None = None
    true_mask: Path | None = None


class Read(NamedTuple):
    """Images of one size, read, of shape ``(H, W, 3)`` each; or one that cannot be read, and why."""

    inputs: list[Input]
    pixels: list[NDArray[np.uint8]]
    error: str = ""


def find_inputs(sources: Sequence[str | Path]) -> list[Input]:
    """Find images, each once, in the order of the sources.

    Folders named as good or defective say what is true of the images in them; so do the folders beside ``good`` in a
    folder ``test``, whose masks are those of MVTec AD's layout.

    Args:
        sources: Files, folders (with their subfolders) and patterns such as ``"line3/**/*.png"``.

    Raises:
        FileNotFoundError: If one of them is not there, or holds no image.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            found = list_images(path)
        elif path.exists():
            found = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute ones, too
            found = [file for match in matches for file in (list_images(match) if match.is_dir() else [match])]
        if not found:
            msg = f"{source}: there is no image there ({', '.join(IMAGE_SUFFIXES)})."
            raise FileNotFoundError(msg)
        files += found
    # Not resolved: a link is called what its user calls it.
    absolute = list(dict.fromkeys(Path(os.path.abspath(file)) for file in files))  # noqa: PTH100
    above = Path(os.path.commonpath([file.parent for file in absolute]))
    masks = _find_masks(absolute)
    return [Input(file, file.relative_to(above).as_posix(), _truth(file), masks.get(file)) for file in absolute]


def _truth(file: Path) -> bool | None:
    kind = kind_of(file.parent.name)
    if kind in {"good", "defective"}:
        return kind == "defective"
    in_test = file.parent.parent.name == TEST and any(
        kind_of(one.name) == "good" for one in file.parent.parent.iterdir()
    )
    return True if in_test else None


def _find_masks(files: Sequence[Path]) -> dict[Path, Path]:
    found: dict[Path, Path] = {}
    for test in {file.parent.parent for file in files if file.parent.parent.name == TEST}:
        masks = test.parent / MASKS
        if masks.is_dir():
            images = [file for file in files if file.parent.parent == test]
            found |= pair_masks(images, test, list_images(masks), masks).masks
    return found


def read_ahead(inputs: Sequence[Input], pool: Executor, batch_size: int) -> Iterator[Read]:
    """Read images in the threads of a pool, some batches ahead, and put neighbours of one size together.

    Args:
        inputs: The images.
        pool: Threads.
        batch_size: Most images of a batch; fewer where they have more than :data:`MOST_PIXELS` together.

    Yields:
        Batches in the order of the images; an image that cannot be read comes alone, with the reason.
    """
    left = iter(inputs)
    waiting: deque[tuple[Input, Future[NDArray[np.uint8]]]] = deque()
    together = Read([], [])

    def fill() -> None:
        while len(waiting) < 2 * batch_size and (one := next(left, None)) is not None:
            waiting.append((one, pool.submit(read_upright, one.path)))

    fill()
    while waiting:
        one, future = waiting.popleft()
        fill()
        try:
            pixels, error = [future.result()], ""
        except OSError as problem:
            pixels, error = [], str(problem)
        if together.pixels and (not pixels or not _fits(together, pixels[0], batch_size)):
            yield together
            together = Read([], [])
        if error:
            yield Read([one], [], error)
            continue
        together.inputs.append(one)
        together.pixels.extend(pixels)
    if together.pixels:
        yield together


def _fits(batch: Read, pixels: NDArray[np.uint8], batch_size: int) -> bool:
    height, width, _ = pixels.shape
    return (
        batch.pixels[0].shape == pixels.shape
        and len(batch.pixels) < batch_size
        and (len(batch.pixels) + 1) * height * width <= MOST_PIXELS
    )

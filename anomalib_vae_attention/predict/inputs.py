"""The images to predict: found in files, folders and patterns, named once each, and read ahead."""

import csv
import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalib_vae_attention.common.folders import DEFECTIVE, GOOD, kind_of, pair_masks
from anomalib_vae_attention.common.images import read_upright
from anomalib_vae_attention.common.models import list_inputs
from anomalib_vae_attention.common.mvtec_layout import IMAGE_SUFFIXES, MASKS, TEST, list_images

LISTS, PARQUET = (".txt", ".csv"), ".parquet"
"""How files end that list images."""
MOST_PIXELS = 2**22
"""Pixels of all images of a batch together: 48 MiB of floats."""


class Input(NamedTuple):
    """An image to predict.

    Attributes:
        path: Its file, absolute.
        name: What its pictures are called: its path below the folder that all inputs lie in.
        defective: What is known of it: whether it shows a defect, or ``None``.
        true_mask: The file of its true mask, or ``None``.
        content: What the file holds, where that is not to be read from the disk.
    """

    path: Path
    name: str
    defective: bool | None = None
    true_mask: Path | None = None
    content: bytes | None = None


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
        sources: Files, folders with their subfolders (of these not what :func:`.list_inputs` leaves out), patterns
            such as ``"line3/**/*.png"``, and lists of files: a path per line (``.txt``), or a column ``path``
            (``.csv``), relative to the list's folder.

    Raises:
        FileNotFoundError: If one of them is not there, or holds no image.
        ValueError: If a list has no column of paths.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            found = list_inputs(path)
        elif path.suffix == PARQUET:
            msg = f"{source}: a Parquet of images is read by --engine ray, and named alone."
            raise ValueError(msg)
        elif path.suffix in LISTS and path.is_file():
            found = _read_list(path)
        elif path.exists():
            found = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute ones, too
            found = [file for match in matches for file in (list_inputs(match) if match.is_dir() else [match])]
        if not found:
            msg = f"{source}: there is no image there ({', '.join(IMAGE_SUFFIXES)})."
            raise FileNotFoundError(msg)
        files += found
    # Not resolved: a link is called what its user calls it.
    absolute = list(dict.fromkeys(Path(os.path.abspath(file)) for file in files))  # noqa: PTH100
    above = Path(os.path.commonpath([file.parent for file in absolute]))
    masks = _find_masks(absolute)
    truths = {folder: truth_of(folder) for folder in {file.parent for file in absolute}}
    return [Input(file, file.relative_to(above).as_posix(), truths[file.parent], masks.get(file)) for file in absolute]


def _read_list(file: Path) -> list[Path]:
    """Read the paths in a list; files that are not there are for the reader of images to tell."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        if file.suffix == ".txt":
            names = [line.strip() for line in opened]
        else:
            rows = csv.DictReader(opened)
            if "path" not in (rows.fieldnames or ()):
                msg = f"{file}: a list of images in CSV has a column `path`, but this one has {rows.fieldnames}."
                raise ValueError(msg)
            names = [row["path"] for row in rows]
    return [file.parent / name for name in names if name]


def truth_of(folder: Path) -> bool | None:
    """Return whether the images of a folder are defective by its name and place, ``None`` if that is not known."""
    kind = kind_of(folder.name)
    if kind in {GOOD, DEFECTIVE}:
        return kind == DEFECTIVE
    test = folder.parent
    in_test = test.name == TEST and test.is_dir() and any(kind_of(one.name) == GOOD for one in test.iterdir())
    return True if in_test else None


def _find_masks(files: Sequence[Path]) -> dict[Path, Path]:
    found: dict[Path, Path] = {}
    for test in {file.parent.parent for file in files if file.parent.parent.name == TEST}:
        masks = test.parent / MASKS
        if masks.is_dir():
            images = [file for file in files if file.parent.parent == test]
            found |= pair_masks(images, test, list_images(masks), masks).masks
    return found


def read(one: Input) -> Read:
    """Read an image, or say why that cannot be done."""
    try:
        return Read([one], [read_upright(one.path, one.content)])
    except OSError as problem:
        return Read([one], [], str(problem))


def read_ahead(inputs: Iterable[Input], pool: Executor, batch_size: int) -> Iterator[Read]:
    """Read images in the threads of a pool, some batches ahead, in their order."""
    left = iter(inputs)
    waiting: deque[Future[Read]] = deque()

    def fill() -> None:
        while len(waiting) < 2 * batch_size and (one := next(left, None)) is not None:
            waiting.append(pool.submit(read, one))

    fill()
    while waiting:
        future = waiting.popleft()
        fill()
        yield future.result()


def in_batches(reads: Iterable[Read], batch_size: int) -> Iterator[Read]:
    """Put neighbours of one size together, at most ``batch_size`` images and :data:`MOST_PIXELS` of all of them.

    Yields:
        Batches in the order of the images; an image that cannot be read comes alone, with the reason.
    """
    together = Read([], [])
    for one in reads:
        pixels = sum(image[..., 0].size for image in (*together.pixels, *one.pixels))
        full = len(together.pixels) == batch_size or pixels > MOST_PIXELS
        if together.pixels and (one.error or full or together.pixels[0].shape != one.pixels[0].shape):
            yield together
            together = Read([], [])
        if one.error:
            yield one
            continue
        together.inputs.extend(one.inputs)
        together.pixels.extend(one.pixels)
    if together.pixels:
        yield together

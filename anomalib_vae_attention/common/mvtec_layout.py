"""MVTec AD's folder layout, and what an image file is. Standard library only: the benchmark's planning imports it."""

import os
from pathlib import Path

TRAIN_GOOD, TEST_GOOD, TEST, MASKS = "train/good", "test/good", "test", "ground_truth"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes, in lower case, of the files that anomalib's ``Folder`` reads: torchvision's ``IMG_EXTENSIONS``."""


def list_images(folder: Path) -> list[Path]:
    """List the image files in a folder and its subfolders, also linked ones, sorted; without hidden ones."""
    found, entered = [], set()
    for place, below, names in os.walk(folder, followlinks=True):
        # A link to a folder above would never end.
        real = os.path.realpath(place)
        below[:] = [] if real in entered else [name for name in below if not name.startswith(".")]
        files = [] if real in entered else [Path(place, name) for name in names if not name.startswith(".")]
        entered.add(real)
        found += [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    return sorted(found)


def list_defects(category: Path) -> list[str]:
    """List the kinds of defects of a category, sorted: the folders of its test images other than ``good``."""
    return sorted(folder.name for folder in (category / TEST).iterdir() if folder.is_dir() and folder.name != "good")


def locate_category(data_root: Path, name: str) -> Path:
    """Find a category in MVTec AD's layout by its path below the folder of all data.

    Returns:
        Its folder, absolute.

    Raises:
        ValueError: If it is not there or not in this layout; the message says what is missing and what there is.
    """
    if not data_root.is_dir():
        msg = f"data_root: there is no folder {data_root}."
        raise ValueError(msg)
    folder = data_root / name
    missing = [part for part in (TRAIN_GOOD, TEST_GOOD, MASKS) if not (folder / part).is_dir()]
    if missing:
        there = sorted(
            good.parents[1].relative_to(data_root).as_posix()
            for depth in ("", "*/", "*/*/")
            for good in data_root.glob(depth + TRAIN_GOOD)
        )
        msg = (
            f"categories: {folder} is not a category in MVTec AD's layout: it has no folder {missing[0]}. "
            f"Available in {data_root}: {', '.join(there) or 'none'}."
        )
        raise ValueError(msg)
    return folder.resolve()

"""What anomalib's data take without a word, though it is not what was meant."""

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

from anomalib.data import AnomalibDataModule, Folder

from anomalib_vae_attention.common.argument_checks import nearest
from anomalib_vae_attention.common.folders import pair_masks
from anomalib_vae_attention.common.images import doubtful_masks
from anomalib_vae_attention.common.machine import cores
from anomalib_vae_attention.common.mvtec_layout import list_images

DEFAULT_SPLIT = 0.2
FOLDERS = ("normal_dir", "abnormal_dir", "normal_test_dir", "mask_dir")

SOME = 20
"""Masks that are looked at; those of a data set are all made the same way."""

logger = logging.getLogger(__name__)
_checked: WeakSet[Folder] = WeakSet()


def check_names(datamodule: Any) -> None:  # noqa: ANN401
    """Check what a datamodule was given, before it downloads anything, and let its workers fit the machine.

    Raises:
        ValueError: If there is no such category, or a ``Folder`` has no such folder.
    """
    if not isinstance(datamodule, AnomalibDataModule):
        return
    datamodule.num_workers = min(datamodule.num_workers, cores())
    kind = type(datamodule)
    data_set = sys.modules.get(kind.__module__.replace(".datamodules.", ".datasets."))
    categories = getattr(data_set, "CATEGORIES", ())
    category = datamodule.category
    if categories and category not in categories and not Path(getattr(datamodule, "root", ""), category).is_dir():
        msg = (
            f"{kind.__name__} has no category {category!r}.{nearest(category, categories)} There are "
            f"{', '.join(categories)}, and folders of that layout."
        )
        raise ValueError(msg)
    # A subclass makes its folders later, when it prepares its data.
    if isinstance(datamodule, Folder) and kind is Folder:
        for name in FOLDERS:
            for folder in _folders(datamodule, name):
                if not folder.is_dir():
                    beside = [one.name for one in folder.parent.iterdir()] if folder.parent.is_dir() else []
                    msg = f"{name}: there is no folder {folder}.{nearest(folder.name, beside)}"
                    raise ValueError(msg)


def check_folder(datamodule: Any) -> None:  # noqa: ANN401
    """Check the images of a ``Folder`` that has been set up; other data are left alone.

    Raises:
        ValueError: If masks belong to other images by their names, or images of defects or masks are learnt as normal.
    """
    # A training and its test set the same data up.
    if not isinstance(datamodule, Folder) or datamodule in _checked:
        return
    normal, abnormal, masks = (_folders(datamodule, name) for name in ("normal_dir", "abnormal_dir", "mask_dir"))
    for name, others in (("abnormal_dir", abnormal), ("mask_dir", masks)):
        for other in others:
            above = [folder for folder in normal if other.is_relative_to(folder)]
            if above:
                msg = f"{name}={other} lies in normal_dir={above[0]}: its images would be learnt as normal. Move it."
                raise ValueError(msg)
    sets = [getattr(datamodule, f"{name}_data", None) for name in ("train", "val", "test")]
    samples = [one.samples for one in sets if one is not None]
    if len(abnormal) == len(masks) == 1:
        _check_pairs(samples, abnormal[0], masks[0])
    given = sorted({path for table in samples for path in table.get("mask_path", ()) if path})
    for warning in doubtful_masks(map(Path, given[:SOME])):
        logger.warning("%s", warning)
    if datamodule.normal_split_ratio != DEFAULT_SPLIT:
        logger.warning("normal_split_ratio has no effect in anomalib; test_split_ratio is what splits normal images.")
    known = {Path(path).resolve() for table in samples for path in table.image_path}
    below = [file for folder in (*normal, *abnormal) for file in list_images(folder)]
    linked = [file for file in below if file.resolve() != file and file.resolve() not in known]
    if linked:
        logger.warning("%d images in linked folders are not seen by anomalib, such as %s.", len(linked), linked[0])
    _checked.add(datamodule)


def _folders(datamodule: Folder, name: str) -> list[Path]:
    given: Any = getattr(datamodule, name)
    several: Sequence[str | Path] = [given] if isinstance(given, str | Path) else given or []
    return [(Path(datamodule.root or "") / one).resolve() for one in several]


def _check_pairs(samples: Sequence[Any], images: Path, masks: Path) -> None:
    """Refuse masks that belong to other images by their names; anomalib pairs them in the order of their paths."""
    rows = [row for table in samples for row in zip(table.image_path, table.mask_path, strict=True)]
    given = {Path(image): Path(mask) for image, mask in rows if mask}
    inside = [image for image in given if image.is_relative_to(images)]
    right = pair_masks(inside, images, list_images(masks), masks).masks
    wrong = [
        (image, mask)
        for image, mask in given.items()
        if right.get(image, mask) != mask or not re.search(rf"(?<![^\W_]){re.escape(image.stem)}(?![^\W_])", mask.stem)
    ]
    if wrong:
        listed = "; ".join(f"{image} with {mask}" for image, mask in wrong[:3])
        msg = (
            f"anomalib pairs images and masks in the order of their paths, and {len(wrong)} pairs do not belong "
            f"together by their names: {listed}. Give masks the names and places of their images, or use "
            "`vae-attention train`."
        )
        raise ValueError(msg)

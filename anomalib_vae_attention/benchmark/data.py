"""Categories in MVTec AD's layout, images of any format."""

from pathlib import Path

import numpy as np
from anomalib.data import Folder
from anomalib.data.utils import ValSplitMode
from numpy.typing import NDArray
from PIL import Image

from anomalib_vae_attention.common.mvtec_layout import MASKS, TEST, TEST_GOOD, TRAIN_GOOD, list_defects, locate_category


def category_datamodule(category: Path) -> Folder:
    """Read a category, a folder in MVTec AD's layout with images of any format; all test images serve for tests.

    Raises:
        ValueError: If one of the folders is missing, naming it.
    """
    category = locate_category(category.parent, category.name)
    defects = list_defects(category)
    return Folder(
        name=category.name,
        root=category,
        normal_dir=TRAIN_GOOD,
        normal_test_dir=TEST_GOOD,
        abnormal_dir=[f"{TEST}/{defect}" for defect in defects],
        mask_dir=[f"{MASKS}/{defect}" for defect in defects],
        # The default would set half of the test images apart.
        val_split_mode=ValSplitMode.SAME_AS_TEST,
        num_workers=0,
    )


def read_image(file: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read an image's pixels ``(H, W, 3)`` in [0, 255], resized to a height and width in pixels if these are given."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)

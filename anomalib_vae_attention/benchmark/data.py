"""Categories in MVTec AD's layout, images of any format."""

from pathlib import Path

import numpy as np
from anomalib.data import Folder
from anomalib.data.utils import ValSplitMode
from numpy.typing import NDArray
from PIL import Image


def category_datamodule(category: Path) -> Folder:
    """Read a category in MVTec AD's layout, images of any format; all test images serve for tests.

    Args:
        category: Folder with ``train/good``, ``test/good``, ``test/*`` and ``ground_truth/*``.

    Returns:
        anomalib's datamodule for it.

    Raises:
        FileNotFoundError: If one of the folders is missing, naming it.
    """
    for part in ("train/good", "test/good", "ground_truth"):
        if not (category / part).is_dir():
            msg = f"{category} is not a category in MVTec AD's layout: it has no folder {part}."
            raise FileNotFoundError(msg)
    defects = sorted(folder.name for folder in (category / "test").iterdir() if folder.name != "good")
    return Folder(
        name=category.name,
        root=category,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{defect}" for defect in defects],
        mask_dir=[f"ground_truth/{defect}" for defect in defects],
        # The default would set half of the test images apart.
        val_split_mode=ValSplitMode.SAME_AS_TEST,
        num_workers=0,
    )


def test_images(category: Path) -> list[Path]:
    """List the test images of a category, by folder and name.

    Args:
        category: Folder of the category.

    Returns:
        Files that Pillow can read by their ending, sorted.
    """
    endings = set(Image.registered_extensions())
    return sorted(file for file in (category / "test").glob("*/*") if file.suffix.lower() in endings)


def read_image(file: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read an image from its file.

    Args:
        file: File of the image.
        size: Height and width in pixels that an image of another size is resized to.

    Returns:
        Pixels of shape ``(H, W, 3)``, in [0, 255].
    """
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)

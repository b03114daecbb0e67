"""Drawing the embedded data set: which images there are, each one's pixels, and a category on disk.

Every image has its own random stream, seeded by its name: the pixels do not depend on what was drawn before.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalib_vae_attention.common.mvtec_layout import MASKS

from .canvas import Layer, lay, photograph
from .fabric import FABRIC_DEFECTS, draw_fabric
from .washer import WASHER_DEFECTS, draw_washer

FORMAT_VERSION = 1
"""Version of the drawing; to be raised with every change that alters a pixel or a file name."""

MAKER = "anomalib_vae_attention"
"""What the marker file names as the maker of a category."""

MARKER = "drawing.json"
"""Name of the file in a category's folder that says what drew it."""

TRAIN_GOOD, TEST_GOOD, TEST_PER_DEFECT = 60, 12, 8
"""Numbers of images: good ones to train on, good ones to test on, and those of each kind of defect."""


class Drawing(NamedTuple):
    """How one category is drawn.

    Attributes:
        draw: Draws a sound part; the part has its picture in the attribute ``picture``.
        defects: For each kind of defect, the function that draws its layers over a part.
    """

    draw: Callable[[np.random.Generator], Any]
    defects: Mapping[str, Callable[[Any, np.random.Generator], list[Layer]]]


CATEGORIES: Mapping[str, Drawing] = {
    "washer": Drawing(draw_washer, WASHER_DEFECTS),
    "fabric": Drawing(draw_fabric, FABRIC_DEFECTS),
}
"""The categories of the embedded data set, the default one first."""


class DrawnImage(NamedTuple):
    """One drawn image with its truth.

    Attributes:
        image: RGB pixels, shape ``(256, 256, 3)``.
        mask: 255 where the defect changed the picture and 0 elsewhere, shape ``(256, 256)``.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


class Name(NamedTuple):
    """The place of one image in a category.

    Attributes:
        split: ``"train"`` or ``"test"``.
        kind: ``"good"`` or a kind of defect.
        number: Number within its folder, from 0.
    """

    split: str
    kind: str
    number: int

    @property
    def image_file(self) -> str:
        """Path of the image relative to the category's folder."""
        return f"{self.split}/{self.kind}/{self.number:03d}.png"

    @property
    def mask_file(self) -> str | None:
        """Path of the mask relative to the category's folder, or ``None`` for a good image."""
        return None if self.kind == "good" else f"{MASKS}/{self.kind}/{self.number:03d}_mask.png"


def choose_drawing(category: str) -> Drawing:
    """Return how a category of the embedded data set is drawn.

    Raises:
        ValueError: If there is no such category; the message lists them.
    """
    if category not in CATEGORIES:
        msg = f"category={category!r} is not in the embedded data set; available are {', '.join(CATEGORIES)}"
        raise ValueError(msg)
    return CATEGORIES[category]


def list_names(category: str) -> list[Name]:
    """List every image of a category, training images first; errors as :func:`choose_drawing`."""
    counts = [("train", "good", TRAIN_GOOD), ("test", "good", TEST_GOOD)]
    counts += [("test", kind, TEST_PER_DEFECT) for kind in choose_drawing(category).defects]
    return [Name(split, kind, number) for split, kind, count in counts for number in range(count)]


def draw_image(category: str, name: Name) -> DrawnImage:
    """Draw one image of a category; errors as :func:`choose_drawing`.

    The part, its defect and the camera draw from random streams of their own: without the defect, the picture, light
    and noise are the very same.
    """
    how = choose_drawing(category)
    seed = np.random.SeedSequence(list(f"{category}/{name.image_file}".encode()))
    part_rng, defect_rng, camera_rng = (np.random.default_rng(child) for child in seed.spawn(3))
    part = how.draw(part_rng)
    layers = [] if name.kind == "good" else how.defects[name.kind](part, defect_rng)
    picture, touched = lay(part.picture, layers)
    return DrawnImage(photograph(picture, camera_rng), np.where(touched, 255, 0).astype(np.uint8))


def draw_category(category: str, folder: Path) -> None:
    """Draw all images and masks of a category in the layout of MVTec AD, and last of all the marker file.

    The folder is made, and must not exist. An ``OSError`` says that a file cannot be written.
    """
    names = list_names(category)
    folder.mkdir()
    files = []
    for name in names:
        drawn = draw_image(category, name)
        for file, pixels in ((name.image_file, drawn.image), (name.mask_file, drawn.mask)):
            if file is None:
                continue
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            # Light compression: noise hardly compresses, and the user is waiting.
            Image.fromarray(pixels).save(folder / file, compress_level=1)
            files.append(file)
    marker = {"drawn_by": MAKER, "version": FORMAT_VERSION, "files": files}
    (folder / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")

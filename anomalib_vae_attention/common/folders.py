"""What folders of images are usually called, and which mask belongs to which image: by name, never by order."""

import re
from collections.abc import Callable, Iterable
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

GOOD, DEFECTIVE = "good", "defective"
NAMES = {
    GOOD: "good ok okay io gut gutteile normal normals nominal pass passed fault_free defect_free non_defective",
    DEFECTIVE: "defective defect defects bad nok nio ng not_ok not_good fail failed faulty reject rejects scrap "
    "anomaly anomalies anomalous abnormal schlecht schlechtteile ausschuss defekt",
    "masks": "masks mask masken ground_truth groundtruth gt annotations segmentation segmentations",
}
"""Names of folders, English and German, in lower case and with underscores, by what lies in them."""
_MASK = "(masks?|gt|label|seg|segmentation|ground_?truth)"
OF_MASKS = re.compile(rf"^{_MASK}[-_ .]|[-_ .]{_MASK}$", re.IGNORECASE)
"""What comes before or after the image's name in the name of its mask."""


def verdict_of(defective: object) -> str:
    """Return the word for an image that is defective, or is not."""
    return DEFECTIVE if defective else GOOD


def first_free(folder: Path, may_take: Callable[[Path], bool] = lambda _folder: False) -> Path:
    """Return a folder, or NAME-2, NAME-3 and so on beside it: the first that does not exist, or that may be taken."""
    others = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(one for one in chain([folder], others) if not one.exists() or may_take(one))


def kind_of(name: str) -> str | None:
    """Return what lies in a folder by its name, a key of :data:`NAMES`, or ``None`` if unknown."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return next((kind for kind, names in NAMES.items() if plain in names.split()), None)


class Pairs(NamedTuple):
    """Images with their masks.

    Attributes:
        masks: The mask of each image that has one.
        missing: Images without a mask.
        surplus: Masks without an image, and those of which an image has several.
    """

    masks: dict[Path, Path]
    missing: list[Path]
    surplus: list[Path]


def _key(file: Path, root: Path, ending: bool) -> str:
    place = file.relative_to(root)
    stem = OF_MASKS.sub("", place.stem) if ending else place.stem
    return (place.parent / stem).as_posix()


def pair_masks(images: Iterable[Path], image_root: Path, masks: Iterable[Path], mask_root: Path) -> Pairs:
    """Pair images with masks of the same place and name below their folders: ``hole/1.png`` and ``hole/1_mask.png``.

    Args:
        images: Images below ``image_root``.
        image_root: Their folder.
        masks: Masks below ``mask_root``, named as the images are, perhaps with an ending such as ``_mask``.
        mask_root: Their folder.
    """
    by_key: dict[str, list[Path]] = {}
    for mask in masks:
        by_key.setdefault(_key(mask, mask_root, ending=True), []).append(mask)
    found: dict[Path, Path] = {}
    missing = []
    for image in images:
        # An image may itself be called 1_mask.png.
        of_image = by_key.get(_key(image, image_root, ending=False)) or by_key.get(_key(image, image_root, ending=True))
        if of_image and len(of_image) == 1 and of_image[0] not in found.values():
            found[image] = of_image[0]
        else:
            missing.append(image)
    used = set(found.values())
    return Pairs(found, missing, sorted(mask for some in by_key.values() for mask in some if mask not in used))

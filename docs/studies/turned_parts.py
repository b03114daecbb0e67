"""A category whose parts do not lie still: ``python docs/studies/turned_parts.py CATEGORY FOLDER``.

Writes a copy of a category in MVTec AD's layout to FOLDER, with every image, and its mask, turned about its centre by
an angle of its own. What comes into the picture at its border is its reflection. What was decided on parts that lie
still can be judged on it, with ``vae-attention benchmark`` or ``docs/studies/ablation.py``.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from anomalib_vae_attention.common.mvtec_layout import MASKS, list_images


def turned(image: np.ndarray, degrees: float, interpolation: int) -> np.ndarray:
    """Turn an image ``(h, w)`` or ``(h, w, 3)`` about its centre, counter-clockwise, with its reflection around it."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=interpolation, borderMode=cv2.BORDER_REFLECT_101)


def main(arguments: list[str] | None = None) -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path, help="folder of a category in MVTec AD's layout")
    parser.add_argument("folder", type=Path, help="where the copy goes")
    given = parser.parse_args(arguments)
    random = np.random.default_rng(0)
    degrees: dict[tuple[str, str], float] = {}
    # A mask comes after its image, by whose folder and name it is known.
    files = sorted(list_images(given.category), key=lambda file: (MASKS in file.parts, file))
    for file in tqdm(files, desc="images"):
        is_mask, place = MASKS in file.parts, file.relative_to(given.category)
        key = file.parent.name, file.stem.removesuffix("_mask")
        angle = degrees[key] if is_mask else random.uniform(0, 360)
        if "test" in place.parts:
            degrees[key] = angle
        copy = (given.folder / place).with_suffix(".png")
        copy.parent.mkdir(parents=True, exist_ok=True)
        image = np.asarray(Image.open(file).convert("L" if is_mask else "RGB"))
        Image.fromarray(turned(image, angle, cv2.INTER_NEAREST if is_mask else cv2.INTER_CUBIC)).save(copy)
    print(f"{len(files)} images and masks written to {given.folder}.")


if __name__ == "__main__":
    main()

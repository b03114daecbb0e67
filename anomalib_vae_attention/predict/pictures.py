"""Pictures of predictions: in the image's own shape, with a colour scale that means the same in all of them."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import find_objects, label

from anomalib_vae_attention.common.pictures import draw_outline

from .models import WHOLE, Box

LONGEST = 768
"""Pixels of the longer side of a picture."""
BELOW, ABOVE = 0.03, 0.04
"""How far below and above the threshold of map pixels colours begin and end. Good parts lie mostly further below."""
STRONGEST = 0.75
"""Opacity of the strongest colour."""
load_font = cache(ImageFont.load_default)
"""A font that was used is quicker than a new one."""


@cache
def colour_scale() -> NDArray[np.uint8]:
    """Return the 256 colours from :data:`BELOW` to :data:`ABOVE` a threshold: red, green, blue and opacity.

    A value far below the threshold is left without colour, so that good parts look like their photograph. The same
    colour means the same in all pictures of a model: nothing depends on the other values of an image.
    """
    height = np.linspace(0, 1, 256)
    colours = np.array(colormaps["YlOrRd"](0.15 + 0.85 * height, bytes=True))
    colours[:, 3] = np.round(255 * STRONGEST * np.clip(1.5 * height, 0, 1) ** 1.5)
    return colours


def legend() -> dict[str, str]:
    """Return what pages draw the scale with: colours of a CSS gradient, and where on it the threshold is."""
    colours = colour_scale()[::5]
    return {
        "colours": ", ".join(
            f"rgb({red} {green} {blue} / {opacity / 255:.2f})" for red, green, blue, opacity in colours
        ),
        "limit": f"{100 * BELOW / (BELOW + ABOVE):.0f}%",
    }


class Region(NamedTuple):
    """The largest defect of an image, in its pixels: left and top edge, width, height, and area."""

    x: int
    y: int
    width: int
    height: int
    area: int


def largest_region(mask: NDArray[np.bool_], size: tuple[int, int], seen: Box = WHOLE) -> Region | None:
    """Find the largest connected region of a mask ``(h, w)``, as a part of an image of a width and height."""
    box = Image.fromarray(mask).getbbox()
    if box is None:
        return None
    labels, _ = label(mask[box[1] : box[3], box[0] : box[2]], structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    rows, columns = find_objects(labels)[int(areas.argmax())]
    left, top, right, bottom = place(size, seen)
    across, down = (right - left) / mask.shape[1], (bottom - top) / mask.shape[0]
    x, y = round(left + (box[0] + columns.start) * across), round(top + (box[1] + rows.start) * down)
    width, height = round((columns.stop - columns.start) * across), round((rows.stop - rows.start) * down)
    return Region(x, y, max(width, 1), max(height, 1), max(round(int(areas.max()) * across * down), 1))


def place(size: tuple[int, int], seen: Box) -> tuple[int, int, int, int]:
    """Return the part of an image of a width and height that its map shows: left, top, right and bottom pixel."""
    width, height = size
    left, top, right, bottom = seen
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def colour_map(anomaly_map: NDArray[np.float32], threshold: float) -> Image.Image:
    """Colour a map ``(h, w)`` by :func:`colour_scale`: a picture of 256 colours with opacity."""
    height = (anomaly_map - threshold + BELOW) / (BELOW + ABOVE)
    picture = Image.fromarray(np.round(np.clip(height, 0, 1) * 255).astype(np.uint8))
    picture.putpalette(colour_scale().tobytes(), "RGBA")
    return picture


def shrink(pixels: NDArray[np.uint8]) -> Image.Image:
    """Make a photograph ``(H, W, 3)`` no larger than :data:`LONGEST`, in its own shape."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONGEST, LONGEST), reducing_gap=2.0)
    return picture


def draw_mask(mask: NDArray[np.bool_], size: tuple[int, int], seen: Box = WHOLE) -> Image.Image:
    """Draw a mask ``(h, w)`` white on black, at its place in an image of a width and height."""
    left, top, right, bottom = place(size, seen)
    drawn = Image.new("L", size)
    inside = (max(right - left, 1), max(bottom - top, 1))
    drawn.paste(Image.fromarray(mask.astype(np.uint8) * 255).resize(inside, Image.Resampling.NEAREST), (left, top))
    return drawn


def overlay(
    photograph: Image.Image, coloured: Image.Image, mask: NDArray[np.bool_] | None, title: str, seen: Box = WHOLE
) -> Image.Image:
    """Draw a map, the outline of a mask ``(h, w)`` and a title, where there are any, on a photograph."""
    left, top, right, bottom = place(photograph.size, seen)
    inside = (max(right - left, 1), max(bottom - top, 1))
    # The map is enlarged, not its four colours: a quarter of the work.
    height, picture = Image.fromarray(np.asarray(coloured)), photograph.copy()
    if extent := height.getbbox():
        # Only where there is colour, and around it, where it spreads to.
        across, down = inside[0] / height.width, inside[1] / height.height
        x, y = max(int((extent[0] - 1) * across) - 1, 0), max(int((extent[1] - 1) * down) - 1, 0)
        x_end, y_end = int((extent[2] + 1) * across) + 2, int((extent[3] + 1) * down) + 2
        x_end, y_end = min(x_end, inside[0]), min(y_end, inside[1])
        part = (x / across, y / down, x_end / across, y_end / down)
        layer = height.resize((x_end - x, y_end - y), Image.Resampling.BILINEAR, part)
        layer.putpalette(colour_scale().tobytes(), "RGBA")
        layer = layer.convert("RGBA")
        picture.paste(layer, (left + x, top + y), layer)
    if mask is not None:
        draw_outline(picture, draw_mask(mask, photograph.size, seen))
    if not title:
        return picture
    size = max(9, min(picture.width // (len(title) * 2 // 3 + 1), picture.height // 12, 32))
    draw, font, at = ImageDraw.Draw(picture, "RGBA"), load_font(size), (size // 2, size // 3)
    box = draw.textbbox(at, title, font=font)
    draw.rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), fill=(0, 0, 0, 128))
    draw.text(at, title, font=font, fill="white")
    return picture


def write(picture: Image.Image, file: Path) -> None:
    """Write a picture, and the folders above it."""
    if not file.parent.is_dir():
        file.parent.mkdir(parents=True, exist_ok=True)
    # A twentieth larger PNG files than by default, in little more than half the time.
    picture.save(file, quality=85, compress_level=3)

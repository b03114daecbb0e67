"""Pictures of predictions: in the image's own shape, with a colour scale that means the same in all of them."""

import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from anomalib_vae_attention.common.pictures import draw_outline, encode_jpeg

from .models import WHOLE, Box

FONT = cv2.FONT_HERSHEY_DUPLEX
LEAST_SCALE = 0.4
"""Of letters of the font that can be read."""
LONGEST = 768
"""Pixels of the longer side of a picture."""
BELOW, ABOVE = 0.03, 0.04
"""How far below and above the threshold of map pixels colours begin and end. Good parts lie mostly further below."""
STRONGEST = 0.75
"""Opacity of the strongest colour."""
TRUTH = np.array([[0, 0, 0, 0], [0, 190, 255, 150]], np.uint8)
"""Colours of what is outside and inside a true mask: red, green, blue and opacity."""


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
    bits = mask.astype(np.uint8)
    first, top_row, columns, rows = cv2.boundingRect(bits)
    if not columns:
        return None
    # The whole mask would take three times as long as the part where there is anything.
    part = bits[top_row : top_row + rows, first : first + columns]
    regions = cv2.connectedComponentsWithStats(part, connectivity=8)[2][1:]
    column, row, wide, high, area = (int(value) for value in regions[regions[:, cv2.CC_STAT_AREA].argmax()])
    left, top, right, bottom = place(size, seen)
    across, down = (right - left) / mask.shape[1], (bottom - top) / mask.shape[0]
    x, y = round(left + (first + column) * across), round(top + (top_row + row) * down)
    return Region(x, y, max(round(wide * across), 1), max(round(high * down), 1), max(round(area * across * down), 1))


def place(size: tuple[int, int], seen: Box) -> tuple[int, int, int, int]:
    """Return the part of an image of a width and height that its map shows: left, top, right and bottom pixel."""
    width, height = size
    left, top = min(round(seen[0] * width), width - 1), min(round(seen[1] * height), height - 1)
    return left, top, max(round(seen[2] * width), left + 1), max(round(seen[3] * height), top + 1)


def find_colours(anomaly_map: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return which colours of :func:`colour_scale` a map ``(h, w)`` has."""
    slope = 255 / (BELOW + ABOVE)
    # A fourth of the time of NumPy; what is beyond the scale has its first or last colour.
    added = cv2.addWeighted(anomaly_map, slope, anomaly_map, 0, slope * (BELOW - threshold), dtype=cv2.CV_8U)
    return np.asarray(added, np.uint8)


def shrink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make a photograph ``(H, W, 3)`` no larger than :data:`LONGEST`, in its own shape."""
    if max(pixels.shape) <= LONGEST:
        return pixels
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONGEST, LONGEST), reducing_gap=2.0)
    return np.asarray(picture)


def spread(
    values: NDArray[np.uint8], shape: tuple[int, ...], seen: Box = WHOLE, how: int = cv2.INTER_NEAREST
) -> NDArray[np.uint8]:
    """Enlarge a map or a mask ``(h, w)`` to its place in an image ``(H, W, ...)``; there are zeros around it."""
    left, top, right, bottom = place((shape[1], shape[0]), seen)
    inside = values
    if values.shape != (bottom - top, right - left):
        inside = np.asarray(cv2.resize(values, (right - left, bottom - top), interpolation=how), np.uint8)
    if inside.shape == shape[:2]:
        return inside
    whole = np.zeros(shape[:2], np.uint8)
    whole[top:bottom, left:right] = inside
    return whole


def overlay(
    photograph: NDArray[np.uint8],
    colours: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
    title: str,
    seen: Box = WHOLE,
) -> NDArray[np.uint8]:
    """Draw a map, the outline of a mask and a title, where there are any, on a copy of a photograph.

    Args:
        photograph: Pixels of shape ``(H, W, 3)``.
        colours: What :func:`find_colours` makes of the map, of shape ``(h, w)``.
        mask: Of shape ``(h, w)``.
        title: Written in the left top corner.
        seen: The part of the photograph that map and mask show.
    """
    # The map is enlarged, not its four colours: a quarter of the work.
    layer, picture = spread(colours, photograph.shape, seen, cv2.INTER_LINEAR), photograph.copy()
    x, y, width, height = cv2.boundingRect(layer)
    if width:
        box = slice(y, y + height), slice(x, x + width)
        added, left_over = _blending()
        under = cv2.cvtColor(cv2.LUT(layer[box], left_over), cv2.COLOR_GRAY2RGB)
        under = cv2.multiply(picture[box], under, scale=1 / 255)
        picture[box] = cv2.add(under, cv2.applyColorMap(layer[box], added))
    if mask is not None:
        draw_outline(picture, spread(mask.astype(np.uint8), photograph.shape, seen))
    if title:
        _write_title(picture, title)
    return picture


@cache
def _blending() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return what each colour of the scale adds to a photograph, and how much of the photograph it leaves."""
    colours = colour_scale()
    added = np.round(colours[:, None, :3] * (colours[:, None, 3:] / 255))
    return added.astype(np.uint8), 255 - colours[:, 3]


def _write_title(picture: NDArray[np.uint8], title: str) -> None:
    """Write a title on a picture, in the left top corner."""
    height, width, _ = picture.shape
    (across, high), _ = cv2.getTextSize(title, FONT, 1, 1)
    scale = max(LEAST_SCALE, min(1.0, 0.6 * width / across, height / (8 * high)))
    line, margin = round(1.5 * scale * high), round(0.5 * scale * high)
    strip = picture[: line + margin, : round(scale * across) + 2 * margin]
    strip //= 2
    cv2.putText(picture, title, (margin, line), FONT, scale, (255, 255, 255), 1, cv2.LINE_AA)


def write(pixels: NDArray[np.uint8], file: Path, palette: NDArray[np.uint8] | None = None) -> None:
    """Write a picture, and the folders above it.

    Args:
        pixels: Colours ``(H, W, 3)`` for a JPEG, or numbers ``(H, W)`` of a palette's for a PNG.
        file: The file.
        palette: Red, green, blue and opacity of the colours ``(N, 4)`` of a PNG.
    """
    if not file.parent.is_dir():
        file.parent.mkdir(parents=True, exist_ok=True)
    if palette is None:
        file.write_bytes(encode_jpeg(pixels))
        return
    picture = Image.fromarray(pixels)
    picture.putpalette(palette.tobytes(), "RGBA")
    # Runs of one colour only: a sixth larger than by default, in half the time.
    picture.save(file, compress_type=zlib.Z_RLE, compress_level=1)

"""Anomaly maps as pictures, and HTML pages that need no other file."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from .atomic_files import replacing

BORDER = (255, 64, 64)


def heat_map(values: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Colour an anomaly map.

    Args:
        values: The map, of shape ``(H, W)``.
        limits: Values for the darkest and the brightest colour.

    Returns:
        Pixels of shape ``(H, W, 3)``.
    """
    low, high = limits
    unit = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    return np.asarray(colormaps["inferno"](unit, bytes=True)[..., :3])


def outline(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw the border of a mask, two pixels wide, on a copy of an image.

    Args:
        image: Pixels of shape ``(H, W, 3)``.
        mask: Mask of shape ``(H, W)``.

    Returns:
        Pixels of shape ``(H, W, 3)``.
    """
    padded = np.pad(mask, 2)
    height, width = mask.shape
    shifts = [(0, 2), (4, 2), (2, 0), (2, 4)]
    inner = np.logical_and.reduce([padded[y : y + height, x : x + width] for y, x in shifts])
    result = image.copy()
    result[mask & ~inner] = BORDER
    return result


def inline(content: bytes | NDArray[np.uint8], kind: str = "jpeg") -> str:
    """Write an image as a ``data:`` address.

    Args:
        content: Bytes of an encoded image, or pixels ``(H, W, 3)``, which become a JPEG.
        kind: Format of encoded bytes, such as ``"png"``.

    Returns:
        The address, for ``<img src=...>``.
    """
    if not isinstance(content, bytes):
        stream = io.BytesIO()
        Image.fromarray(content).save(stream, format="JPEG", quality=85)
        content, kind = stream.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def write_page(file: Path, template: Path, **content: Any) -> None:  # noqa: ANN401
    """Write an HTML page from a Jinja template; what it is given is escaped.

    Args:
        file: HTML file to write, whole or not at all.
        template: File of the template.
        **content: The template's variables; a missing one is an error.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(template.read_text(encoding="utf-8")).render(**content)
    with replacing(file) as temporary:
        temporary.write_text(page, encoding="utf-8")

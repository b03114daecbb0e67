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
    """Colour an anomaly map ``(H, W)``, given the values for the darkest and the brightest colour.

    Returns:
        Pixels of shape ``(H, W, 3)``.
    """
    low, high = limits
    unit = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    return np.asarray(colormaps["inferno"](unit, bytes=True)[..., :3])


def draw_outline(picture: Image.Image, mask: Image.Image) -> None:
    """Draw the border of a mask of one channel, two pixels wide, into a picture of its size."""
    if box := mask.getbbox():
        inside = np.asarray(mask.crop(box)) > 0
        # What lies around the mask is not eroded. So little is quicker by hand than with scipy.
        inner = np.pad(inside, 2)
        for _ in range(2):
            inner = inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        picture.paste(BORDER, box[:2], Image.fromarray(inside & ~inner))


def outline(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw the border of a mask ``(H, W)``, two pixels wide, on a copy of an image of shape ``(H, W, 3)``."""
    picture = Image.fromarray(image)
    draw_outline(picture, Image.fromarray(mask))
    return np.asarray(picture)


def inline(content: bytes | NDArray[np.uint8], kind: str = "jpeg") -> str:
    """Write an image as a ``data:`` address, for ``<img src=...>``.

    Args:
        content: Bytes of an encoded image, or pixels ``(H, W, 3)``, which become a JPEG.
        kind: Format of encoded bytes, such as ``"png"``.
    """
    if not isinstance(content, bytes):
        stream = io.BytesIO()
        Image.fromarray(content).save(stream, format="JPEG", quality=85)
        content, kind = stream.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def write_page(file: Path, template: Path, **content: Any) -> None:  # noqa: ANN401
    """Write an HTML page from the file of a Jinja template, whole or not at all.

    The template's variables are escaped; a missing one is an error.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(template.read_text(encoding="utf-8")).render(**content)
    with replacing(file) as temporary:
        temporary.write_text(page, encoding="utf-8")

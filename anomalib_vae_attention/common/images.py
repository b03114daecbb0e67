"""Reading an image file as a person sees it, or saying why that cannot be done."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that it cannot read; the last for more than twice ``Image.MAX_IMAGE_PIXELS``."""
ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held; 1 is upright."""
PLAIN_PNG = slice(24, 29), bytes([8, 2, 0, 0, 0])
"""Where a PNG says that it has 8 bits for each of three colours, and is not interlaced."""
MORE_THAN_PIXELS = {b"eXIf", b"acTL", b"tEXt", b"zTXt", b"iTXt"}
"""Chunks of a PNG that may turn it (the texts as XMP or a raw EXIF profile), or hold more frames."""


def why_misread(image: Image.Image) -> str | None:
    """Say why an opened image would be read as something else than it shows, or return ``None``.

    Only its header is read, unless it has more than 8 bits per channel.
    """
    pages = getattr(image, "n_frames", 1)
    # Photographs of phones have a second picture, of depth or for preview.
    if pages > 1 and image.format != "MPO":
        return f"it has {pages} pages or frames, of which only the first would be seen: save one image per file"
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image)
        if image.mode.startswith("F") or levels.min() < 0 or levels.max() > 255:
            return (
                f"it has levels from {levels.min()} to {levels.max()} (Pillow's mode {image.mode}), of which none "
                "beyond 0 to 255 and no fractions are read: convert the images to 8 bits per channel, all by the same "
                "scale"
            )
    return None


def read_tensor(file: Path) -> torch.Tensor:
    """Read an image as :func:`read_upright` does: floats from 0 to 1, of shape ``(3, H, W)``."""
    return torch.from_numpy(read_upright(file).transpose(2, 0, 1).copy()).float() / 255


def is_turned(image: Image.Image) -> bool:
    """Say whether an opened image is stored turned or mirrored, and its EXIF data say how to show it."""
    return image.getexif().get(ORIENTATION, 1) not in {0, 1}


def _chunks(content: bytes) -> Iterator[bytes]:
    """Return the kinds of the chunks of a PNG."""
    at = 8
    while kind := content[at + 4 : at + 8]:
        yield kind
        at += int.from_bytes(content[at : at + 4]) + 12


def _read_plain_png(file: Path, content: bytes | None) -> NDArray[np.uint8] | None:
    """Read the usual PNG, in two thirds of Pillow's time, to the same pixels; ``None`` for what is not one."""
    if content is None and file.suffix.lower() == ".png":
        content = file.read_bytes()
    place, plain = PLAIN_PNG
    if content is None or not content.startswith(b"\x89PNG\r\n\x1a\n") or content[place] != plain:
        return None
    size = int.from_bytes(content[16:20]) * int.from_bytes(content[20:24])
    if size > (Image.MAX_IMAGE_PIXELS or size) or not MORE_THAN_PIXELS.isdisjoint(_chunks(content)):
        return None
    try:
        pixels = imagecodecs.png_decode(content)
    except (RuntimeError, ValueError):
        return None
    # A colour that is meant to be transparent makes a fourth channel.
    return pixels if pixels.shape[2:] == (3,) else None


def read_upright(file: Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read an image as it is meant to be seen: turned as its EXIF data say, grey and transparent ones as colours.

    Args:
        file: The file.
        content: What is in it, where that is not to be read from the disk.

    Returns:
        Pixels of shape ``(H, W, 3)``.

    Raises:
        OSError: If it cannot be read, or would be read wrongly; the message names the file.
    """
    try:
        if (pixels := _read_plain_png(file, content)) is not None:
            return pixels
        with Image.open(file if content is None else io.BytesIO(content)) as image:
            reason = why_misread(image)
            if reason is None:
                # Upright and coloured as most are, it is not copied.
                ImageOps.exif_transpose(image, in_place=True)
                return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except UNREADABLE as error:
        reason = str(error)
    msg = f"{file} cannot be read: {reason}"
    raise OSError(msg)


def doubtful_masks(masks: Iterable[Path]) -> list[str]:
    """Warn of masks that cannot be read, or hold more than 0 and one other level: noise of JPEG counts as defect."""
    warnings = []
    for mask in masks:
        try:
            with Image.open(mask) as image:
                levels = np.unique(np.asarray(image.convert("L")))
                transparent = "A" in image.getbands()
        except UNREADABLE as error:
            warnings.append(f"the mask {mask} cannot be read: {error}")
            continue
        if transparent or len(levels) > 2:
            what = "transparency, which is ignored" if transparent else f"{len(levels)} levels: any above 0 is defect"
            warnings.append(f"the mask {mask} has {what}; save masks as black and white PNG")
    return warnings if len(warnings) < 4 else [*warnings[:3], f"and {len(warnings) - 3} more masks like these"]

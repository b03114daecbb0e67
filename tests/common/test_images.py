"""A file of an image is read as Pillow reads it, whatever reads it."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anomalib_vae_attention.common import images
from anomalib_vae_attention.common.images import read_upright

PIXELS = np.cumsum(np.random.default_rng(0).integers(-3, 4, (20, 31, 3)), 0).astype(np.uint8)


def png(pixels: NDArray[np.uint8] = PIXELS, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)
    return stream.getvalue()


def pillows(content: bytes) -> NDArray[np.uint8] | None:
    """Return what Pillow reads, ``None`` for what it cannot."""
    try:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None


def ours(content: bytes) -> NDArray[np.uint8] | None:
    """Return what :func:`.read_upright` reads, ``None`` for what it refuses."""
    try:
        return read_upright(Path("image.png"), content)
    except OSError:
        return None


def same(one: NDArray[np.uint8] | None, other: NDArray[np.uint8] | None) -> bool:
    return other is None if one is None else np.array_equal(one, other)


def test_the_usual_png_is_decoded_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quicker decoder is the one that runs, and only there."""
    monkeypatch.setattr(images.Image, "open", None)
    assert same(read_upright(Path("image.png"), png()), PIXELS)
    with pytest.raises(TypeError):
        read_upright(Path("image.png"), png(PIXELS[..., 0]))


def chunk(kind: bytes, content: bytes) -> PngInfo:
    info = PngInfo()
    info.add(kind, content)
    return info


@pytest.mark.parametrize(
    "content",
    [
        png(PIXELS[..., 0]),
        png(np.dstack([PIXELS, PIXELS[..., :1]])),
        png(transparency=(1, 2, 3)),
        png(pnginfo=chunk(b"gAMA", (90909).to_bytes(4))),
        png(pnginfo=chunk(b"sBIT", bytes([5, 5, 5]))),
        png(pnginfo=chunk(b"bKGD", bytes([0, 5] * 3))),
    ],
    ids=["grey", "opacity", "transparent colour", "gamma", "significant bits", "background"],
)
def test_every_kind_of_png_has_pillows_pixels(content: bytes) -> None:
    assert same(ours(content), pillows(content))


def test_a_png_that_is_turned_is_upright() -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    assert same(ours(png(np.ascontiguousarray(np.rot90(PIXELS)), exif=exif)), PIXELS)


def test_a_damaged_png_is_never_read_otherwise_than_by_pillow() -> None:
    """Cut at every tenth byte, and with a bit of every fifth turned."""
    content = png()
    damaged = [content[:end] for end in range(0, len(content), 10)]
    damaged += [content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :] for at in range(0, len(content), 5)]
    read = [ours(one) for one in damaged]
    # What libpng reads of a chunk's length or checksum may be left to Pillow, which is more patient.
    assert all(same(one, pillows(file)) for one, file in zip(read, damaged, strict=True))
    assert any(one is None for one in read)


def test_a_png_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="decompression bomb"):
        read_upright(Path("image.png"), png())

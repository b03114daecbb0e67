"""Maps, borders and pages."""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from anomalib_vae_attention.common.pictures import heat_map, inline, outline, write_page


def test_heat_map_and_outline() -> None:
    colours = heat_map(np.array([[0.0, 5.0, 99.0]], np.float32), (0.0, 10.0))
    assert colours.shape == (1, 3, 3)
    assert colours[0, 0].sum() < colours[0, 1].sum() < colours[0, 2].sum()
    mask = np.zeros((20, 20), bool)
    mask[4:16, 4:16] = True
    drawn = outline(np.zeros((20, 20, 3), np.uint8), mask).any(axis=-1)
    assert drawn[4, 4]
    assert drawn[5, 10]
    assert not drawn[10, 10]
    assert not drawn[0, 0]


def test_a_page_escapes_what_it_is_given_and_misses_nothing(tmp_path: Path) -> None:
    (tmp_path / "page.j2").write_text("<p>{{ name }}</p>", encoding="utf-8")
    write_page(tmp_path / "page.html", tmp_path / "page.j2", name="<b>")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "<p>&lt;b&gt;</p>"
    with pytest.raises(jinja2.UndefinedError, match="name"):
        write_page(tmp_path / "page.html", tmp_path / "page.j2")


def test_pixels_become_an_address() -> None:
    kind, _, content = inline(np.full((8, 6, 3), 200, np.uint8)).partition(";base64,")
    assert kind == "data:image/jpeg"
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.size == (6, 8)
    assert image.getpixel((3, 3)) == pytest.approx((200, 200, 200), abs=2)

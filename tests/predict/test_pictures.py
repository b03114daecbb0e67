"""The largest defect, and colours that mean the same in all pictures."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import label

from anomalib_vae_attention.common.pictures import encode_jpeg
from anomalib_vae_attention.predict.pictures import colour_scale, find_colours, largest_region, overlay, spread


def as_pillow(colours: NDArray[np.uint8]) -> Image.Image:
    """Return a map's colours with their opacity."""
    return Image.fromarray(colour_scale()[colours])


def test_the_largest_defect_in_pixels_of_the_image() -> None:
    mask = np.zeros((32, 32), bool)
    mask[2:4, 2:4] = True
    mask[10:20, 4:8] = True
    # An image of 128x64 pixels is four times as wide and twice as high as its map.
    assert largest_region(mask, (128, 64)) == (16, 20, 16, 20, 320)
    # Of an image that was cropped to its right half.
    assert largest_region(mask, (128, 64), (0.5, 0, 1, 1)) == (72, 20, 8, 20, 160)
    assert largest_region(np.zeros((4, 4), bool), (8, 8)) is None


def test_the_largest_defect_is_scipys() -> None:
    random = np.random.default_rng(0)
    for share in (0.02, 0.2, 0.4):
        mask = random.random((60, 60)) < share
        regions, _ = label(mask, np.ones((3, 3)))
        areas = np.bincount(regions.ravel())[1:]
        found = largest_region(mask, (60, 60))
        assert found.area == areas.max()
        there = [np.argwhere(regions == number + 1) for number in np.flatnonzero(areas == areas.max())]
        assert (found.y, found.x) in [tuple(places.min(0)) for places in there]
        assert (found.height, found.width) in [tuple(np.ptp(places, 0) + 1) for places in there]


def test_the_same_value_has_the_same_colour_whatever_else_is_in_the_map() -> None:
    calm, wild = np.full((2, 2), 0.51, np.float32), np.array([[0.51, 0.9], [0.0, 0.2]], np.float32)
    assert find_colours(calm, 0.5)[0, 0] == find_colours(wild, 0.5)[0, 0]
    # What is far below the threshold has no colour, and opacity grows with the value.
    assert as_pillow(find_colours(wild, 0.5)).getpixel((0, 1))[3] == 0
    assert (np.diff(colour_scale()[:, 3].astype(int)) >= 0).all()


def test_overlays_have_the_colours_of_the_map_and_a_title() -> None:
    """As Pillow lays the whole layer of colours over the photograph; what has no colour is left alone."""
    grey = np.full((64, 64, 3), 100, np.uint8)
    anomaly_map = np.full((64, 64), 0.4, np.float32)
    assert (overlay(grey, find_colours(anomaly_map, 0.5), None, "") == grey).all()
    anomaly_map[:, 40:] = np.linspace(0.46, 0.56, 64)[:, None]
    coloured = find_colours(anomaly_map, 0.5)
    expected = Image.alpha_composite(Image.fromarray(grey).convert("RGBA"), as_pillow(coloured)).convert("RGB")
    assert np.abs(overlay(grey, coloured, None, "").astype(int) - np.asarray(expected)).max() <= 1
    # Enlarged, only the part that has colour is drawn.
    anomaly_map[:, 50:] = anomaly_map[:20] = 0.4
    coloured, large = find_colours(anomaly_map, 0.5), np.full((101, 150, 3), 100, np.uint8)
    layer = np.asarray(Image.fromarray(coloured).resize((150, 101), Image.Resampling.BILINEAR))
    expected = Image.alpha_composite(Image.fromarray(large).convert("RGBA"), as_pillow(layer)).convert("RGB")
    drawn = overlay(large, coloured, None, "")
    assert np.abs(drawn.astype(int) - np.asarray(expected)).max() <= 3
    assert (drawn != 100).any()
    titled = overlay(grey, find_colours(np.zeros((8, 8), np.float32), 0.5), None, "good 0.1")
    assert (titled[:20] != 100).any()
    assert (titled[24:] == 100).all()
    assert (grey == 100).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (3, 2)])
def test_even_a_sliver_of_an_image_has_its_picture(shape: tuple[int, int]) -> None:
    """With a map of its very corner, which takes less than a pixel."""
    photograph, mask = np.full((*shape, 3), 100, np.uint8), np.ones((8, 8), bool)
    drawn = overlay(photograph, np.full((8, 8), 255, np.uint8), mask, "defective  1.000", (0.9, 0.9, 1, 1))
    assert drawn.shape == photograph.shape
    assert (drawn[-1, -1] != 100).any()
    assert spread(mask.astype(np.uint8), shape, (0.9, 0.9, 1, 1)).sum() >= 1


def test_a_jpeg_is_pillows() -> None:
    random = np.random.default_rng(0)
    pixels = np.cumsum(random.integers(-3, 4, (50, 61, 3)), 1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=85)
    for same in (pixels, np.dstack([pixels, pixels])[..., :3]):
        assert (np.asarray(Image.open(io.BytesIO(encode_jpeg(same)))) == np.asarray(Image.open(stream))).all()

"""The largest defect, and colours that mean the same in all pictures."""

import numpy as np
from PIL import Image

from anomalib_vae_attention.predict.pictures import colour_map, colour_scale, largest_region, overlay


def test_the_largest_defect_in_pixels_of_the_image() -> None:
    mask = np.zeros((32, 32), bool)
    mask[2:4, 2:4] = True
    mask[10:20, 4:8] = True
    # An image of 128x64 pixels is four times as wide and twice as high as its map.
    assert largest_region(mask, (128, 64)) == (16, 20, 16, 20, 320)
    # Of an image that was cropped to its right half.
    assert largest_region(mask, (128, 64), (0.5, 0, 1, 1)) == (72, 20, 8, 20, 160)
    assert largest_region(np.zeros((4, 4), bool), (8, 8)) is None


def test_the_same_value_has_the_same_colour_whatever_else_is_in_the_map() -> None:
    calm, wild = np.full((2, 2), 0.51, np.float32), np.array([[0.51, 0.9], [0.0, 0.2]], np.float32)
    first, second = (colour_map(one, 0.5).convert("RGBA").getpixel((0, 0)) for one in (calm, wild))
    assert first == second
    # What is far below the threshold has no colour, and opacity grows with the value.
    assert colour_map(wild, 0.5).convert("RGBA").getpixel((0, 1))[3] == 0
    assert (np.diff(colour_scale()[:, 3].astype(int)) >= 0).all()


def test_overlays_have_the_colours_of_the_map_and_a_title() -> None:
    """As the whole layer of colours over the photograph would be; what has no colour is left alone."""
    grey = Image.new("RGB", (64, 64), (100, 100, 100))
    anomaly_map = np.full((64, 64), 0.4, np.float32)
    assert overlay(grey, colour_map(anomaly_map, 0.5), None, "").tobytes() == grey.tobytes()
    anomaly_map[:, 40:] = 0.52
    coloured = colour_map(anomaly_map, 0.5)
    expected = Image.alpha_composite(grey.convert("RGBA"), coloured.convert("RGBA")).convert("RGB")
    drawn = np.asarray(overlay(grey, coloured, None, ""))
    assert np.abs(drawn.astype(int) - np.asarray(expected)).max() <= 1
    # Enlarged, only the part that has colour is drawn.
    anomaly_map[:, 50:] = anomaly_map[:20] = 0.4
    coloured, large = colour_map(anomaly_map, 0.5), Image.new("RGB", (150, 101), (100, 100, 100))
    layer = Image.fromarray(np.asarray(coloured)).resize(large.size, Image.Resampling.BILINEAR)
    layer.putpalette(colour_scale().tobytes(), "RGBA")
    expected = Image.alpha_composite(large.convert("RGBA"), layer.convert("RGBA")).convert("RGB")
    drawn = np.asarray(overlay(large, coloured, None, ""))
    assert np.abs(drawn.astype(int) - np.asarray(expected)).max() <= 3
    assert (drawn != 100).any()
    titled = np.asarray(overlay(grey, colour_map(np.zeros((8, 8), np.float32), 0.5), None, "good 0.1"))
    assert (titled[:20] != 100).any()
    assert (titled[24:] == 100).all()

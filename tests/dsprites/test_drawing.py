"""The drawn images against the frames of the published GIF, and what must hold for any drawing."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from anomalib_vae_attention.dsprites.drawing import FACTOR_SIZES, draw_grid, outline
from anomalib_vae_attention.dsprites.store import unpack


def gif_factors() -> list[tuple[int, ...]]:
    """List the factors of the GIF's 320 frames: one factor moves at a time."""
    frames = []
    for shape, moves in ((2, True), (1, False), (0, False)):
        up, down = range(6), range(5, -1, -1)
        frames += [(shape, scale, 0, 0, 0) for scale in chain(up, down, up)]
        frames += [(shape, 5, turn, 0, 0) for turn in range(40)]
        if moves:
            frames += [(shape, 5, 0, 0, y) for y in range(32)] + [(shape, 5, 0, x, 31) for x in range(32)]
            frames += [(shape, 5, 0, 31, y) for y in range(31, -1, -1)]
            frames += [(shape, 5, 0, x, 0) for x in range(31, -1, -1)]
        frames += [(shape, scale, 0, 0, 0) for scale in down]
    return frames


def test_the_published_frames(data_root: Path) -> None:
    """Of the 254 distinct frames at least 95 % have at most 2 wrong pixels, and none has more than 5."""
    frames = np.load(data_root / "dsprites" / "gif_frames.npy")
    distinct = {frame.tobytes(): index for index, frame in enumerate(frames)}.values()
    factors = gif_factors()
    assert (len(factors), len(distinct)) == (320, 254)
    wrong = []
    for index in distinct:
        *which, x, y = factors[index]
        wrong.append(int((unpack(draw_grid(*which)[x, y]) != frames[index]).sum()))
    assert np.mean(np.array(wrong) <= 2) >= 0.99
    assert max(wrong) <= 4


def inside(vertices: np.ndarray, x: float, y: float) -> bool:
    """Tell by the even-odd rule, one edge at a time, whether a point is inside a polygon."""
    found = False
    for (x1, y1), (x2, y2) in zip(vertices, np.roll(vertices, -1, 0), strict=True):
        if (y1 <= y) != (y2 <= y) and x1 + (y - y1) / (y2 - y1) * (x2 - x1) < x:
            found = not found
    return found


@pytest.mark.parametrize(("shape", "scale", "turn", "x", "y"), [(0, 2, 7, 3, 30), (1, 0, 13, 31, 0), (2, 5, 22, 17, 9)])
def test_pixels_are_those_with_their_centre_inside(shape: int, scale: int, turn: int, x: int, y: int) -> None:
    angle, size = 2 * np.pi * turn / 39, 0.5 + 0.1 * scale
    u, v = outline(shape).T * size
    placed = np.stack([np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u], 1)
    placed += 16 + 32 * np.array([x, y]) / 31
    expected = [[inside(placed, column + 0.5, row + 0.5) for column in range(64)] for row in range(64)]
    assert np.array_equal(unpack(draw_grid(shape, scale, turn)[x, y]), expected)


@pytest.mark.parametrize("shape", range(3))
def test_a_full_turn_is_no_turn(shape: int) -> None:
    """Both ends of the orientation are in the data set; the images are the same but for rounding on an edge."""
    first, last = (unpack(draw_grid(shape, 5, turn)) for turn in (0, FACTOR_SIZES[2] - 1))
    assert (first != last).sum((-1, -2)).max() <= 2


@pytest.mark.parametrize("shape", range(3))
def test_nothing_is_cut_off(shape: int) -> None:
    """Even the largest shape keeps clear of the border at all four corners."""
    corners = unpack(draw_grid(shape, 5, 5)[[0, 0, 31, 31], [0, 31, 0, 31]])
    assert not corners[:, [0, -1]].any()
    assert not corners[:, :, [0, -1]].any()
    assert np.ptp(corners.sum((-1, -2), dtype=int)) <= 12


def test_scale_is_size() -> None:
    """The area grows with the square of the scale."""
    areas = [unpack(draw_grid(0, scale, 0)[0, 0]).sum() for scale in range(6)]
    assert areas[0] == 100
    assert areas[5] == 400
    assert areas == sorted(areas)

"""Drawing dSprites: a white square, ellipse or heart on black, at every size, orientation and place.

Matthey et al. ("dSprites: Disentanglement testing Sprites dataset", 2017) publish the images, not the program that
made them. The geometry here was fitted to the 254 distinct frames of the GIF in their repository, whose factors are
known from their order: a square of half-side 9.6, an ellipse with semi-axes 12.8 and 7.2 as a polygon, and a heart, all
in pixels at full size, with pixel centres at halves. ``docs/dsprites.md`` says how many pixels differ.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BPoly

FACTORS = ("shape", "scale", "orientation", "x", "y")
"""The ground-truth factors in the order of the data set's index, the slowest first; the constant colour is left out."""

FACTOR_SIZES = (3, 6, 40, 32, 32)
"""Number of values of each factor."""

SIZE = 64
"""Height and width of an image, in pixels."""

IMAGE_BYTES = SIZE * SIZE // 8
"""Bytes of an image at one bit per pixel, rows from the top, the leftmost pixel in the highest bit."""

# Just under 9.6: at 9.6 two frames have pixel centres on an edge.
HALF_SIDE = 9.599
SEMI_AXES = (12.78, 7.22)
ELLIPSE_VERTICES = 64

HEART = np.array([
    (0.0, -5.346),
    (1.565, -8.355),
    (2.681, -17.776),
    (25.301, -2.945),
    (1.901, 3.277),
    (8.562, 1.018),
    (0.771, 6.018),
    (0.0, 9.618),
])  # fmt: skip
"""Control points of the right half of the heart's outline, a Bezier curve from the notch to the tip, in pixels at
full size, y downwards. They were found by minimising the number of wrong pixels in the GIF's frames, starting from a
least-squares fit to the outline that separates the pixels inside from those outside."""

HEART_VERTICES = 64


def outline(shape: int) -> NDArray[np.float64]:
    """Return the outline of a square (0), ellipse (1) or heart (2) at full size and orientation 0, around the origin.

    Returns:
        Vertices ``(x, y)`` of a closed polygon in order, in pixels, y downwards; shape ``(V, 2)``.
    """
    if shape == 0:
        return HALF_SIDE * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    if shape == 1:
        angle = 2 * np.pi * np.arange(ELLIPSE_VERTICES) / ELLIPSE_VERTICES
        return np.stack([np.cos(angle), np.sin(angle)], 1) * SEMI_AXES
    right = BPoly(HEART[:, None], [0, 1])(np.linspace(0, 1, HEART_VERTICES))
    return np.concatenate([right, right[-2:0:-1] * (-1, 1)])


def _place(vertices: NDArray[np.float64], scale: int, orientation: int) -> NDArray[np.float64]:
    """Scale by 0.5 to 1 and turn by 0 to 2 pi, both ends included, counter-clockwise as seen."""
    size = 0.5 + 0.5 * scale / (FACTOR_SIZES[1] - 1)
    angle = 2 * np.pi * orientation / (FACTOR_SIZES[2] - 1)
    cosine, sine = np.cos(angle), np.sin(angle)
    return size * vertices @ np.array([(cosine, -sine), (sine, cosine)])


def draw_grid(shape: int, scale: int, orientation: int) -> NDArray[np.uint8]:
    """Draw one shape, size and orientation, given by their indices, at all places, as bits.

    A pixel is white if its centre is inside by the even-odd rule. Each row of pixels is one 64-bit word: an edge that
    crosses the row flips all pixels to its right. The shape is ``(32, 32, 512)``, the first axis x and the second y.
    """
    start = _place(outline(shape), scale, orientation)
    x1, y1 = start.T
    x2, y2 = np.roll(start, -1, axis=0).T
    places = 16 + 32 * np.arange(FACTOR_SIZES[3]) / (FACTOR_SIZES[3] - 1)
    heights = (np.arange(SIZE) + 0.5 - places[:, None]).ravel()[:, None]
    rows, edges = np.nonzero((y1 <= heights) != (y2 <= heights))
    share = (heights[rows, 0] - y1[edges]) / (y2[edges] - y1[edges])
    crossing = x1[edges] + share * (x2[edges] - x1[edges])
    first_right = np.clip(np.ceil(crossing + places[:, None] - 0.5), 0, SIZE).astype(np.int64)
    all_right_of = np.array([(1 << (SIZE - column)) - 1 for column in range(SIZE + 1)], np.uint64)
    flips = all_right_of[first_right]
    crossed, starts = np.unique(rows, return_index=True)
    words = np.zeros((len(places), len(places) * SIZE), ">u8")
    words[:, crossed] = np.bitwise_xor.reduceat(flips, starts, axis=1)
    return words.view(np.uint8).reshape(len(places), len(places), IMAGE_BYTES)

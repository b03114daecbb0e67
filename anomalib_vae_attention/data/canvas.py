"""The tools with which the embedded pictures are drawn: coverage, smooth noise, blur, layers and the camera.

Pictures are float64 arrays of linear brightness in ``[0, 1]``. Everything is NumPy in double precision: an
image library may change its rounding with its version or with the processor, and the drawn pixels must not.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float64]

SIZE = 256
"""Height and width of every drawn image, in pixels."""

ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float64)

# A layer fainter than this could not be told from sensor noise, so it is neither drawn nor marked in the mask.
_FAINTEST = 0.12


class Layer(NamedTuple):
    """A patch of colour laid over a picture.

    Attributes:
        coverage: Opacity of each pixel, shape ``(256, 256)``, range ``[0, 1]``.
        colour: What is laid over, broadcastable to ``(256, 256, 3)``, range ``[0, 1]``.
    """

    coverage: Field
    colour: Field


def soft(distance: Field, width: float = 1.0) -> Field:
    """Turn a signed distance to an edge, in pixels and negative inside, into an anti-aliased coverage.

    Returns:
        The same shape: 1 inside, 0 outside, 0.5 on the edge, over a transition of ``width`` pixels.
    """
    return np.clip(0.5 - distance / width, 0.0, 1.0)


@lru_cache(maxsize=32)
def _taps(cell: float) -> tuple[int, NDArray[np.intp], Field]:
    """Weigh the six nodes around each pixel of a row by a Gaussian, with nodes ``cell`` pixels apart.

    Returns:
        The number of nodes, and the nodes and weights of each pixel, both of shape ``(6, 256)``.
    """
    place = np.arange(SIZE) / cell
    # Three spare nodes beyond either border keep the noise as lively there as in the middle.
    nodes = np.floor(place).astype(np.intp) + np.arange(1, 7)[:, None]
    weights = np.exp(-0.5 * ((place + 3.0 - nodes) / 0.6) ** 2)
    return int(nodes.max()) + 1, nodes, weights / np.linalg.norm(weights, axis=0)


def clouds(rng: np.random.Generator, cell: float) -> Field:
    """Draw smooth noise without a preferred direction, in bumps of ``cell`` pixels.

    Returns:
        Mean 0 and standard deviation 1, shape ``(256, 256)``.
    """
    count, nodes, weights = _taps(float(cell))
    grid = rng.standard_normal((count, count))
    # Not a matrix product: on a busy machine its threads wait for each other far longer than they work.
    wide = sum(weight * grid[:, node] for node, weight in zip(nodes, weights, strict=True))
    return sum(weight[:, None] * wide[node] for node, weight in zip(nodes, weights, strict=True))


def blur(field: Field, sigma: float) -> Field:
    """Blur a field ``(256, 256)`` or ``(256, 256, channels)`` by ``sigma`` pixels; its border does not darken."""
    reach = int(np.ceil(3.0 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in range(2):
        padded = np.pad(field.swapaxes(0, axis), [(reach, reach), *[(0, 0)] * (field.ndim - 1)], mode="edge")
        field = sum(tap * padded[shift : shift + SIZE] for shift, tap in enumerate(taps)).swapaxes(0, axis)
    return field


def path_distance(points: Sequence[tuple[float, float]]) -> tuple[Field, Field]:
    """Measure how far every pixel lies from a polyline with two or more corners ``(row, column)``, in pixels.

    Returns:
        The distance in pixels, and how far along the line its nearest point lies, in ``[0, 1]``; each ``(256, 256)``.
    """
    nearest, along = np.full((SIZE, SIZE), np.inf), np.zeros((SIZE, SIZE))
    corners = np.asarray(points, dtype=np.float64)
    steps = np.diff(corners, axis=0)
    for number, ((row, column), (down, right)) in enumerate(zip(corners[:-1], steps, strict=True)):
        share = ((ROWS - row) * down + (COLUMNS - column) * right) / max(down**2 + right**2, 1e-9)
        share = np.clip(share, 0.0, 1.0)
        distance = np.hypot(ROWS - row - share * down, COLUMNS - column - share * right)
        along = np.where(distance < nearest, (number + share) / len(steps), along)
        nearest = np.minimum(nearest, distance)
    return nearest, along


def blob(rng: np.random.Generator, centre: tuple[float, float], radius: float, rough: float) -> Field:
    """Measure the signed distance to an irregular patch, stretched and turned at random.

    Args:
        rng: Source of randomness.
        centre: Its middle as ``(row, column)``, in pixels.
        radius: Its mean radius in pixels.
        rough: Standard deviation of its outline, as a share of the radius.

    Returns:
        Distance in pixels, negative inside, shape ``(256, 256)``.
    """
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.5)
    down, right = ROWS - centre[0], COLUMNS - centre[1]
    major = (np.cos(turn) * right + np.sin(turn) * down) / stretch
    minor = (np.cos(turn) * down - np.sin(turn) * right) * stretch
    outline = clouds(rng, max(radius * 0.8, 3.0)) + 0.4 * clouds(rng, max(radius * 0.3, 2.0))
    # Far from the patch the noise would scatter islands, so it is limited to what keeps the patch in one piece.
    return np.hypot(major, minor) - radius * (1.0 + np.clip(rough * outline, -0.5, 0.5))


def lay(picture: Field, layers: Iterable[Layer]) -> tuple[Field, NDArray[np.bool_]]:
    """Lay layers over a picture ``(256, 256, 3)``, the uppermost last, and note which pixels they touch.

    Returns:
        The new picture, and a mask of shape ``(256, 256)`` outside which not one pixel has changed.
    """
    touched = np.zeros((SIZE, SIZE), dtype=bool)
    for coverage, colour in layers:
        opacity = np.where(coverage < _FAINTEST, 0.0, coverage)[..., None]
        picture = picture * (1.0 - opacity) + colour * opacity
        touched |= opacity[..., 0] > 0.0
    return picture, touched


def photograph(picture: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Take a picture with an inspection camera: uneven light, exposure, vignetting, sensor noise, 8 bits.

    Args:
        picture: Shape ``(256, 256, 3)``, range ``[0, 1]``.
        rng: The same one gives the same light and noise, whatever is in the picture.

    Returns:
        RGB pixels of shape ``(256, 256, 3)``.
    """
    down, right = ROWS / SIZE - 0.5, COLUMNS / SIZE - 0.5
    slope_down, slope_right = rng.normal(0.0, 0.05, 2)
    light = rng.normal(1.0, 0.03) * (1.0 + slope_down * down + slope_right * right)
    light *= 1.0 - 0.16 * (down**2 + right**2)
    lit = np.clip(picture * light[..., None] * rng.normal(1.0, 0.008, 3), 0.0, 1.0)
    # Part of the noise is common to the three channels, as after the demosaicing of a colour sensor.
    grain = 0.8 * rng.standard_normal((SIZE, SIZE, 1)) + 0.6 * rng.standard_normal((SIZE, SIZE, 3))
    noisy = lit + grain * np.sqrt(0.008**2 + 0.015**2 * lit)
    return np.clip(np.rint(noisy * 255.0), 0, 255).astype(np.uint8)

"""The texture kind ``fabric``: a twill of blue warp and pale weft that fills the picture, and its defects."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from .canvas import COLUMNS, ROWS, SIZE, Field, Layer, blob, blur, clouds, path_distance, soft

_WARP = np.array([0.33, 0.43, 0.60])
_WEFT = np.array([0.74, 0.73, 0.68])
_TABLE = np.array([0.10, 0.09, 0.09])
_COFFEE = np.array([0.66, 0.50, 0.34])
# Dark ends of yarn hide in the weave better than pale ones; both occur.
_SHARE_OF_PALE = 0.6


class Fabric(NamedTuple):
    """One sound piece of fabric.

    Attributes:
        picture: The cloth, shape ``(256, 256, 3)``, range ``[0, 1]``.
    """

    picture: Field


def _yarns(rng: np.random.Generator, place: Field) -> tuple[Field, Field]:
    """Split a coordinate, counted in yarns, into the yarns' own brightness and the place across each, +-0.5."""
    number = np.floor(place)
    # A yarn is a little brighter or darker than its neighbours over its whole length.
    own = rng.normal(1.0, 0.06, 64)[number.astype(int) % 64]
    return own, place - number - 0.5


def draw_fabric(rng: np.random.Generator) -> Fabric:
    """Draw one sound piece of fabric: shifted, slightly turned, stretched and wavy."""
    turn, pitch = rng.normal(0.0, 0.02), rng.normal(7.6, 0.10)
    right = COLUMNS + 0.9 * clouds(rng, 48.0) + 0.25 * clouds(rng, 8.0)
    down = ROWS + 0.9 * clouds(rng, 48.0) + 0.25 * clouds(rng, 8.0)
    across = (np.cos(turn) * right + np.sin(turn) * down) / pitch + rng.uniform(8.0, 16.0)
    along = (np.cos(turn) * down - np.sin(turn) * right) / pitch + rng.uniform(8.0, 16.0)
    warp, off_warp = _yarns(rng, across)
    weft, off_weft = _yarns(rng, along)
    warp_on_top = (np.floor(across) + np.floor(along)) % 3 > 0
    ridge = np.where(warp_on_top, np.cos(np.pi * off_warp), np.cos(np.pi * off_weft))
    crown = np.where(warp_on_top, np.cos(np.pi * off_weft), np.cos(np.pi * off_warp))
    # The fibres of a yarn are twisted, which shows as fine slanting lines.
    twist = np.cos(2.0 * np.pi * np.where(warp_on_top, 1.6 * off_warp + 1.5 * along, 1.6 * off_weft + 1.5 * across))
    shade = (0.42 + 0.48 * ridge + 0.12 * crown * ridge + 0.05 * twist) * (1.0 + 0.05 * clouds(rng, 3.0))
    shade *= 1.0 + 0.025 * clouds(rng, 60.0)
    cloth = np.where(warp_on_top[..., None], _WARP * warp[..., None], _WEFT * weft[..., None])
    return Fabric(blur(np.clip(cloth * shade[..., None], 0.0, 1.0), 0.75))


def _place(rng: np.random.Generator, margin: float) -> tuple[float, float]:
    """Pick a ``(row, column)`` at least ``margin`` pixels from the border."""
    row, column = rng.uniform(margin, SIZE - margin, 2)
    return float(row), float(column)


def _frayed(rng: np.random.Generator, edge: Field, reach: float) -> Layer:
    """Let loose fibres stand around an opening, given as a signed distance in pixels."""
    fibres = np.clip(0.35 + 0.55 * clouds(rng, 1.6), 0.0, 0.9)
    return Layer(fibres * soft(np.abs(edge) - reach, 2.0), np.array([0.70, 0.72, 0.76]))


def _hole(_part: Fabric, rng: np.random.Generator) -> list[Layer]:
    """Open a hole with frayed edges through which the dark table shows."""
    edge = blob(rng, _place(rng, 30.0), rng.uniform(4.5, 15.0), 0.2)
    dark = _TABLE * (1.0 + 0.2 * clouds(rng, 4.0))[..., None]
    return [Layer(soft(edge, 1.5), dark), _frayed(rng, edge, rng.uniform(0.8, 2.2))]


def _stain(part: Fabric, rng: np.random.Generator) -> list[Layer]:
    """Spill one drop that has dried with a darker rim; the weave stays visible through it."""
    radius, strength = rng.uniform(9.0, 32.0), rng.uniform(0.3, 0.75)
    edge = blob(rng, _place(rng, 40.0), radius, 0.13)
    rim = soft(np.abs(edge + 2.5) - 1.0, 3.0)
    tinted = part.picture * (_COFFEE * (1.0 - 0.12 * rim[..., None]))
    return [Layer(np.clip(strength * (1.0 + 0.35 * rim), 0.0, 1.0) * soft(edge, 4.0), tinted)]


def _cut(_part: Fabric, rng: np.random.Generator) -> list[Layer]:
    """Slit the cloth with a blade: a dark lens, widest in its middle, between pale cut fibres."""
    half, slope = rng.uniform(12.0, 36.0), rng.uniform(0.0, np.pi)
    row, column = _place(rng, 45.0)
    bend = rng.normal(0.0, 2.0)
    points = [
        (row + half * s * np.sin(slope) + bend * s * s, column + half * s * np.cos(slope) - bend * s * s)
        for s in np.linspace(-1.0, 1.0, 7)
    ]
    distance, along = path_distance(points)
    edge = distance - rng.uniform(1.2, 3.4) * np.sin(np.pi * along)
    return [Layer(0.95 * soft(edge), _TABLE), _frayed(rng, edge, 0.8)]


def _loose_thread(part: Fabric, rng: np.random.Generator) -> list[Layer]:
    """Drop a curly end of yarn, pale or dark, on the cloth, with the shadow that it casts."""
    row, column = _place(rng, 60.0)
    heading, curl, points = rng.uniform(0.0, 2.0 * np.pi), rng.normal(0.0, 0.18), []
    for _ in range(rng.integers(8, 20)):
        points.append((row, column))
        row, column = row + 5.0 * np.sin(heading), column + 5.0 * np.cos(heading)
        curl = 0.8 * curl + rng.normal(0.0, 0.15)
        heading += curl
    distance, _ = path_distance(points)
    half = rng.uniform(1.0, 1.8)
    round_shade = np.clip(1.0 - 0.45 * (distance / half) ** 2, 0.3, 1.0)[..., None]
    yarn = np.array([0.86, 0.83, 0.76]) if rng.random() < _SHARE_OF_PALE else np.array([0.20, 0.14, 0.16])
    shadow = 0.45 * soft(np.roll(distance, (2, 2), axis=(0, 1)) - half, 2.5)
    return [Layer(shadow, 0.35 * part.picture), Layer(0.95 * soft(distance - half), yarn * round_shade)]


FABRIC_DEFECTS: Mapping[str, Callable[[Fabric, np.random.Generator], list[Layer]]] = {
    "cut": _cut,
    "hole": _hole,
    "loose_thread": _loose_thread,
    "stain": _stain,
}
"""Each kind of defect of a piece of fabric, and the function that draws its layers."""

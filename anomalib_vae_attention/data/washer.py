"""The object kind ``washer``: a turned metal ring with a keyway and three holes on a rubber mat, and its defects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .canvas import COLUMNS, ROWS, SIZE, Field, Layer, blob, blur, clouds, path_distance, soft

_OUTER, _INNER = 94.0, 42.0
_HOLES = (0.9, 2.4, 4.4)
# Blur of the lens: standard deviation in pixels.
_OPTICS = 0.6
_RUST = np.array([0.40, 0.22, 0.11])
_GREASE = np.array([0.13, 0.12, 0.10])
# The other patches are grease.
_SHARE_OF_RUST = 0.6


@dataclass(frozen=True)
class Washer:
    """One sound washer.

    Attributes:
        picture: The washer on its mat, shape ``(256, 256, 3)``, range ``[0, 1]``.
        mat: The mat alone, same shape and range.
        metal: Coverage of the metal, shape ``(256, 256)``, range ``[0, 1]``.
        centre: Middle of the ring as ``(row, column)``, in pixels.
        turn: Direction of the keyway, in radians.
    """

    picture: Field
    mat: Field
    metal: Field
    centre: tuple[float, float]
    turn: float

    def at(self, radius: float, angle: float) -> tuple[float, float]:
        """Find the ``(row, column)`` of a place given by its radius in pixels and its angle from the keyway."""
        return (
            self.centre[0] + radius * np.sin(self.turn + angle),
            self.centre[1] + radius * np.cos(self.turn + angle),
        )


def _outline(down: Field, right: Field, turn: float) -> Field:
    """Measure the signed distance in pixels to the edge of the metal, negative inside."""
    radius = np.hypot(down, right)
    edge = np.maximum(radius - _OUTER, _INNER - radius)
    ahead, aside = np.cos(turn) * right + np.sin(turn) * down, np.cos(turn) * down - np.sin(turn) * right
    keyway = np.maximum(np.maximum(np.abs(aside) - 8.0, ahead - _INNER - 13.0), -ahead)
    edge = np.maximum(edge, -keyway)
    for angle in _HOLES:
        row, column = 69.0 * np.sin(turn + angle), 69.0 * np.cos(turn + angle)
        edge = np.maximum(edge, 7.5 - np.hypot(down - row, right - column))
    return edge


def _metal(rng: np.random.Generator, down: Field, right: Field, edge: Field) -> Field:
    """Shade the turned face: grooves around the axis, the two fans of light they throw, and a chamfer."""
    light = -2.2 + rng.normal(0.0, 0.12)
    radius, angle = np.hypot(down, right), np.arctan2(down, right)
    groove = np.interp(radius, np.arange(0.0, 128.0, 0.8), rng.standard_normal(160))
    wear = np.interp(radius, np.arange(0.0, 128.0, 1.6), rng.standard_normal(80))
    off_light = np.abs(np.sin(angle - light))
    fan = np.exp(-((off_light / 0.42) ** 2))
    face = 0.50 + 0.26 * fan + (0.020 + 0.025 * fan) * groove + 0.018 * wear * clouds(rng, 24.0)
    face += 0.012 * clouds(rng, 40.0)
    slope_down, slope_right = np.gradient(edge)
    facing = slope_down * np.sin(light) + slope_right * np.cos(light)
    chamfer = soft(-edge - 3.0, 1.5)
    return face * (1.0 - chamfer) + (0.52 + 0.30 * facing) * chamfer


def draw_washer(rng: np.random.Generator) -> Washer:
    """Draw one sound washer, placed and turned at random."""
    middle = (SIZE - 1) / 2
    centre = (middle + rng.uniform(-7.0, 7.0), middle + rng.uniform(-7.0, 7.0))
    turn = float(rng.uniform(0.0, 2.0 * np.pi))
    down, right = ROWS - centre[0], COLUMNS - centre[1]
    edge = _outline(down, right, turn)
    metal = soft(edge, 1.2)
    shadow = blur(np.roll(metal, (6, 5), axis=(0, 1)), 3.0)
    weave = 0.010 * clouds(rng, 2.0) + 0.012 * clouds(rng, 30.0)
    dust = 0.16 * soft(2.9 - clouds(rng, 2.5), 0.6)
    ground = (0.21 + weave + dust) * (1.0 - 0.55 * shadow)
    mat = ground[..., None] * np.array([0.92, 1.0, 1.08])
    face = _metal(rng, down, right, edge)[..., None] * np.array([1.02, 1.0, 0.97])
    picture = blur(mat * (1.0 - metal[..., None]) + face * metal[..., None], _OPTICS)
    return Washer(picture, mat, metal, centre, turn)


def _crack(part: Washer, rng: np.random.Generator) -> list[Layer]:
    """Open a jagged dark line that runs from the rim into the metal, with one bright lip."""
    angle, drift = rng.uniform(0.0, 2.0 * np.pi), rng.normal(0.0, 0.12)
    depth = rng.uniform(16.0, 50.0)
    stops = np.linspace(0.0, 1.0, 10)
    jags = np.cumsum(rng.normal(0.0, 0.022, stops.size))
    points = [part.at(_OUTER + 1 - depth * s, angle + drift * s + jag) for s, jag in zip(stops, jags, strict=True)]
    distance, along = path_distance(points)
    gap = distance - rng.uniform(1.1, 2.6) * (1.0 - 0.75 * along)
    lip = np.roll(gap, (1, 1), axis=(0, 1))
    return [
        Layer(0.45 * soft(lip - 0.5) * part.metal, np.full(3, 0.88)),
        Layer(rng.uniform(0.65, 0.95) * soft(gap) * part.metal, np.full(3, 0.10)),
    ]


def _missing_piece(part: Washer, rng: np.random.Generator) -> list[Layer]:
    """Break a piece out of the rim, so that the mat shows behind a bright broken edge."""
    size = rng.uniform(8.0, 21.0)
    bite = blob(rng, part.at(_OUTER + 0.1 * size, rng.uniform(0.0, 2.0 * np.pi)), size, 0.16)
    broken = np.full(3, rng.uniform(0.62, 0.85))
    # The camera's blur has smeared the metal a little over its outline; that glow has to go with the piece.
    metal_and_glow = np.clip(8.0 * blur(part.metal, _OPTICS), 0.0, 1.0)
    return [
        Layer(0.85 * soft(bite - 2.2, 1.4) * part.metal, broken),
        Layer(soft(bite) * metal_and_glow, part.mat),
    ]


def _contamination(part: Washer, rng: np.random.Generator) -> list[Layer]:
    """Put one to three patches of rust or grease on the face."""
    angle, dirt = rng.uniform(0.0, 2.0 * np.pi), _RUST if rng.random() < _SHARE_OF_RUST else _GREASE
    strength, layers = rng.uniform(0.35, 0.85), []
    for _ in range(rng.integers(1, 4)):
        place = part.at(rng.uniform(_INNER + 10.0, _OUTER - 10.0), angle + rng.normal(0.0, 0.22))
        patch = blob(rng, place, rng.uniform(5.0, 16.0), 0.22)
        mottled = np.clip(0.85 + 0.15 * clouds(rng, 3.0), 0.4, 1.0)
        layers.append(Layer(strength * mottled * soft(patch, 3.0) * part.metal, dirt))
    return layers


def _scratch(part: Washer, rng: np.random.Generator) -> list[Layer]:
    """Drag two to four fine bright lines across the grooves of the face."""
    angle, slant = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(-30.0, 30.0)
    span, strength, layers = rng.uniform(0.35, 1.0), rng.uniform(0.45, 0.85), []
    stops = np.linspace(-0.5, 0.5, 9)
    for number in range(rng.integers(2, 5)):
        middle = 64.0 + 3.5 * number + rng.normal(0.0, 1.0)
        points = [part.at(middle + slant * s + 8.0 * (s * s - 0.1), angle + span * s) for s in stops]
        distance, along = path_distance(points)
        pressed = 0.55 + 0.45 * np.sin(np.pi * along)
        layers.append(Layer(strength * pressed * soft(distance - rng.uniform(0.5, 1.2)) * part.metal, np.full(3, 0.97)))
    return layers


WASHER_DEFECTS: Mapping[str, Callable[[Washer, np.random.Generator], list[Layer]]] = {
    "contamination": _contamination,
    "crack": _crack,
    "missing_piece": _missing_piece,
    "scratch": _scratch,
}
"""Each kind of defect of a washer, and the function that draws its layers."""

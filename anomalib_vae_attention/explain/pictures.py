"""Explained images as pictures: a PNG file each, and tiles for the page."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomalib_vae_attention.common.atomic_files import replacing
from anomalib_vae_attention.common.pictures import heat_map

from .explainers import Picture

COLUMNS = 4
"""Tiles in a row of a PNG."""


class Scales(NamedTuple):
    """Values that the colours of maps of all images reach from and to.

    Attributes:
        aggregate: Of the aggregates.
        anomaly_map: Of the anomaly maps.
    """

    aggregate: tuple[float, float]
    anomaly_map: tuple[float, float]


class Tile(NamedTuple):
    """A picture in a picture.

    Attributes:
        caption: What it shows.
        pixels: Shape ``(H, W, 3)``.
    """

    caption: str
    pixels: NDArray[np.uint8]


def find_scales(pictures: list[Picture]) -> Scales:
    """Let colours reach from the least to what one pixel in a thousand exceeds, over all images."""

    def reach(maps: list[torch.Tensor]) -> tuple[float, float]:
        values = torch.cat([one.flatten() for one in maps]).numpy()
        return float(values.min()), float(np.quantile(values, 0.999))

    aggregates = [picture.latents.aggregate for picture in pictures]
    return Scales(reach(aggregates), reach([picture.anomaly_map for picture in pictures]))


def _photograph(image: torch.Tensor) -> NDArray[np.uint8]:
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def tiles_of(picture: Picture, scales: Scales) -> list[Tile]:
    """Make the tiles of an image: itself, its reconstruction, aggregate and anomaly map, then a map per latent."""
    tiles = [Tile("image", _photograph(picture.image))]
    if picture.reconstruction is not None:
        tiles.append(Tile("reconstruction", _photograph(picture.reconstruction)))
    tiles.append(Tile("all latents", heat_map(picture.latents.aggregate.numpy(), scales.aggregate)))
    tiles.append(Tile("anomaly map", heat_map(picture.anomaly_map.numpy(), scales.anomaly_map)))
    maps = picture.latents.maps.numpy()
    limits = float(maps.min()), float(maps.max())
    for number, distance, values in zip(picture.latents.number, picture.latents.distance, maps, strict=True):
        tiles.append(Tile(f"latent {number}: {float(distance):.1f} sd", heat_map(values, limits)))
    return tiles


def write_picture(file: Path, title: str, tiles: list[Tile]) -> None:
    """Write tiles as a PNG file.

    Args:
        file: Where to.
        title: What stands above them.
        tiles: The tiles.
    """
    rows = -(-len(tiles) // COLUMNS)
    figure = Figure(figsize=(2.2 * COLUMNS, 2.35 * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, tile in zip(axes.flat, tiles, strict=False):
        axis.imshow(tile.pixels)
        axis.set_title(tile.caption, fontsize=9)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=90)

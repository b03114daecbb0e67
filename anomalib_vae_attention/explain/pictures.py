"""Explained images as pictures: a PNG file each, and tiles for the page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomalib_vae_attention.common.atomic_files import replacing
from anomalib_vae_attention.common.folders import DEFECTIVE, GOOD
from anomalib_vae_attention.common.pictures import heat_map
from anomalib_vae_attention.predict.pictures import find_colours, overlay

from .data import evenly_spaced
from .explainers import Picture

COLUMNS = 4
"""Tiles in a row of a PNG."""
MOST_ON_SHEET = 24
SLIDE = (13.33, 7.5)
"""Width and height of a slide, in inches."""
COLOURS = {GOOD: "#17795c", DEFECTIVE: "#c0392b"}


class Tile(NamedTuple):
    """A picture in a picture: what it shows, its pixels ``(H, W, 3)``, and the colour of what is written above it."""

    caption: str
    pixels: NDArray[np.uint8]
    colour: str = "black"


def find_limits(maps: list[torch.Tensor]) -> tuple[float, float]:
    """Let colours reach from the least to what one pixel in a thousand exceeds, over the maps of all images."""
    values = torch.cat([one.flatten() for one in maps]).numpy()
    return float(values.min()), float(np.quantile(values, 0.999))


def _photograph(image: torch.Tensor) -> NDArray[np.uint8]:
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def _anomalies(photograph: NDArray[np.uint8], picture: Picture) -> NDArray[np.uint8]:
    """Draw the anomaly map on the image, where the model normalises it to a threshold of 0.5."""
    return overlay(photograph, find_colours(picture.anomaly_map.numpy(), 0.5), None, "")


def make_tiles(pictures: list[Picture]) -> list[list[Tile]]:
    """Make the tiles of each image: itself, the counterfactual, aggregate and anomaly map, then a map per latent.

    The colours of anomaly maps are those of ``vae-attention predict``, on which good parts are calm. Those of
    aggregates are the same for all images, those of latents relative to each other.
    """
    of_aggregates = find_limits([picture.latents.aggregate for picture in pictures])
    every = []
    for picture in pictures:
        photograph = _photograph(picture.image)
        tiles = [Tile("image", photograph)]
        seen, normal, in_false_colours = picture.counterfactual
        if in_false_colours:
            tiles.append(Tile("as the model sees it", _photograph(seen)))
        tiles.append(Tile("a good part in its place", _photograph(normal)))
        tiles.append(Tile("all latents", heat_map(picture.latents.aggregate.numpy(), of_aggregates)))
        tiles.append(Tile("anomaly map", _anomalies(photograph, picture)))
        maps = picture.latents.maps.numpy()
        limits = float(maps.min()), float(maps.max())
        for number, distance, values in zip(picture.latents.number, picture.latents.distance, maps, strict=True):
            tiles.append(Tile(f"latent {number}: {float(distance):.1f} sd", heat_map(values, limits)))
        every.append(tiles)
    return every


def write_picture(file: Path, title: str, tiles: list[Tile]) -> None:
    """Write tiles with a title above them as a PNG file."""
    rows = -(-len(tiles) // COLUMNS)
    _write(file, title, tiles, (rows, COLUMNS), (2.2 * COLUMNS, 2.35 * rows + 0.4))


def write_sheet(file: Path, names: Sequence[str], pictures: Sequence[Picture]) -> None:
    """Write the images with their maps on one sheet of a slide's shape, worst first, as a PNG file.

    Of many images some are taken, evenly spaced from the worst to the best.
    """
    ranked = sorted(zip(names, pictures, strict=True), key=lambda pair: -pair[1].score)
    tiles = [
        Tile(
            f"{picture.verdict} {picture.score:.3f}\n{name[-24:]}",
            _anomalies(_photograph(picture.image), picture),
            COLOURS.get(picture.verdict, "black"),
        )
        for name, picture in evenly_spaced(ranked, MOST_ON_SHEET)
    ]
    columns = max(1, math.floor(math.sqrt(len(tiles) * SLIDE[0] / SLIDE[1])))
    of_many = f" of {len(pictures)}" if len(tiles) < len(pictures) else ""
    title = f"{len(tiles)}{of_many} images, worst first, and where they depart from good parts"
    _write(file, title, tiles, (-(-len(tiles) // columns), columns), SLIDE)


def _write(file: Path, title: str, tiles: list[Tile], shape: tuple[int, int], size: tuple[float, float]) -> None:
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(*shape, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, tile in zip(axes.flat, tiles, strict=False):
        axis.imshow(tile.pixels)
        axis.set_title(tile.caption, fontsize=9, color=tile.colour)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=90)

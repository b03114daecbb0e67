"""What the page shows of an image: read and judged as ``vae-attention predict`` does, and written as HTML."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from anomalib_vae_attention.common.images import UNREADABLE, read_upright
from anomalib_vae_attention.common.pictures import PAGES, inline
from anomalib_vae_attention.explain.explainers import Counterfactual, judge_and_imagine
from anomalib_vae_attention.predict.models import Box, Model, Verdicts, as_verdicts, judge
from anomalib_vae_attention.predict.pictures import (
    find_colours,
    largest_region,
    legend,
    overlay,
    place,
    shrink,
    spread,
)

MOST_PIXELS = 50_000_000
"""Pixels of an image, at most: a small file can hold more than fit in memory."""
TEMPLATE = Path(__file__).with_name("shown.html.j2")


class Shown(NamedTuple):
    """An image that was judged, and all that is needed to judge it by other thresholds.

    Attributes:
        name: What the file is called.
        size: Width and height of the image.
        photograph: The image, no larger than is shown, of shape ``(H, W, 3)``.
        verdict: What the model says of it: fields of :class:`Verdicts`, without the axis of the batch.
        thresholds: The model's own, of the score and of the map.
        seen: The part of the image that the map shows.
        counterfactual: What a normal part would have shown; ``None`` where only the checkpoint knows.
    """

    name: str
    size: tuple[int, int]
    photograph: NDArray[np.uint8]
    verdict: Verdicts
    thresholds: tuple[float, float]
    seen: Box
    counterfactual: Counterfactual | None


def look(model: Model, file: Path, name: str) -> Shown:
    """Read an image and judge it.

    Args:
        model: The model.
        file: The image.
        name: What it is called to people.

    Raises:
        ValueError: If it cannot be read or judged. The message is for whoever sent it, and names no folder.
    """
    pixels = _read(file, name)
    try:
        verdicts, expected = _judge(model, pixels)
    except Exception as error:
        msg = f"{name} cannot be judged: {error}"
        raise ValueError(msg) from error
    height, width, _ = pixels.shape
    verdict = Verdicts(*(values[0] for values in verdicts))
    seen = model.seen(height, width)
    return Shown(name, (width, height), shrink(pixels), verdict, model.thresholds, seen, expected)


def _judge(model: Model, pixels: NDArray[np.uint8]) -> tuple[Verdicts, Counterfactual | None]:
    if model.module is None:
        return judge(model, [pixels]), None
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float() / 255
    out, expected = judge_and_imagine(model.module, image)
    return as_verdicts(out), expected


def _read(file: Path, name: str) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            width, height = image.size
        if width * height <= MOST_PIXELS:
            return read_upright(file)
        reason = f"it has {width} x {height} pixels, and at most {MOST_PIXELS // 1_000_000} million are taken"
    except UnidentifiedImageError as error:
        msg = f"{name} is no image that can be read. JPEG, PNG, BMP, WebP and TIFF are."
        raise ValueError(msg) from error
    except UNREADABLE as error:
        reason = str(error).removeprefix(f"{file} cannot be read: ").rstrip(".")
    msg = f"{name} cannot be read: {reason}."
    raise ValueError(msg)


def write_verdict(shown: Shown, thresholds: tuple[float, float]) -> tuple[str, str]:
    """Write verdict and pictures by thresholds of the score and of the map. The model does not run again.

    Returns:
        Verdict and score; the image, its map and its mask.
    """
    verdict, own, photograph = shown.verdict, shown.thresholds, shown.photograph
    # At its own thresholds the model has the word.
    defective = bool(verdict.defective if thresholds[0] == own[0] else verdict.score > thresholds[0])
    mask = verdict.mask if thresholds[1] == own[1] else verdict.anomaly_map > thresholds[1]
    drawn = overlay(photograph, find_colours(verdict.anomaly_map, own[1]), mask if defective else None, "", shown.seen)
    card = _write(
        "verdict",
        name=shown.name,
        defective=defective,
        score=float(verdict.score),
        threshold=thresholds[0],
        own=own[0],
        region=largest_region(mask, shown.size, shown.seen) if defective else None,
    )
    pictures = [
        ("The image", inline(photograph)),
        ("Where it departs from good parts", inline(drawn)),
        ("Mask", inline(spread(mask * np.uint8(255), photograph.shape, shown.seen))),
    ]
    return card, _write("pictures", pictures=pictures, **legend())


def write_counterfactual(shown: Shown) -> str:
    """Write what a normal part would have shown, or that this model does not tell."""
    height, width, _ = shown.photograph.shape
    left, top, right, bottom = place((width, height), shown.seen)
    pair, pictures = shown.counterfactual, []
    for image in (pair.seen, pair.normal) if pair else ():
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        enlarged = Image.fromarray(pixels).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        pictures.append(inline(np.asarray(enlarged)))
    colours = pair is not None and pair.in_false_colours
    return _write("counterfactual", pictures=pictures, in_false_colours=colours)


def write_error(message: str) -> str:
    """Write why there is no verdict."""
    return _write("error", message=message)


def _write(kind: str, **content: object) -> str:
    return PAGES.from_string(TEMPLATE.read_text(encoding="utf-8")).render(kind=kind, **content)

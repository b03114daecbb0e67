"""A run of predictions: images in, rows and pictures out, each image once."""

import contextlib
import logging
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from anomalib_vae_attention.common.folders import verdict_of
from anomalib_vae_attention.common.images import UNREADABLE
from anomalib_vae_attention.common.machine import cores

from .inputs import Input, Read, in_batches, read_ahead
from .models import Model, Verdicts, judge
from .pictures import TRUTH, Region, colour_scale, find_colours, largest_region, overlay, shrink, spread, write
from .report import write_report
from .results import ERROR, OVERLAYS, PARTS, REPORT, Results, claim, stamp

Row = dict[str, Any]
BATCH_SIZE = 8
FINE_MAP = 128
"""Pixels of the longer side of a map, above which the report has it in half its size."""
NOTHING = np.zeros((0, 0, 3), np.uint8)
"""The pixels of an image that cannot be read."""

logger = logging.getLogger(__name__)


def predict(
    model: Model, inputs: Sequence[Input], folder: Path, title: str, note: str = "", batch_size: int = BATCH_SIZE
) -> list[Row]:
    """Predict images that have no row yet in a folder, and write its table, pictures and report.

    Args:
        model: The model.
        inputs: The images, each once.
        folder: Where everything is written; an interrupted run goes on there.
        title: Heading of the report.
        note: What else the report says under it.
        batch_size: Most images of a batch.

    Returns:
        The rows of these images, in their order; see :data:`.COLUMNS`.

    Raises:
        ValueError: If the folder belongs to another run; see :func:`.claim`.
    """
    with claim(folder, model.file), _no_threads_of_opencv(), ThreadPoolExecutor(min(4, cores())) as pool:
        results = Results(folder)
        named = results.named(inputs)
        left = [one for one in named if not results.is_done(one)]
        written: list[tuple[Row, Future[None] | None]] = []
        with tqdm(total=len(named), initial=len(named) - len(left), desc="images", unit="image") as progress:
            for batch in in_batches(read_ahead(left, pool, batch_size), batch_size):
                rows = [
                    (row, verdict and pool.submit(_draw, folder, model, row, one.true_mask, pixels, verdict))
                    for row, one, pixels, verdict in judge_batch(model, batch)
                ]
                # A row is added when its pictures are there; meanwhile the next batch was judged.
                results.append(_finished(written))
                written = rows
                progress.update(len(rows))
            results.append(_finished(written))
        rows_of = results.finish()
        write_report(folder / REPORT, list(rows_of.values()), model.thresholds[0], title, note)
        return [rows_of[str(one.path)] for one in named]


@contextlib.contextmanager
def _no_threads_of_opencv() -> Generator[None, None, None]:
    """Let each picture be drawn by the thread that it is given to: more would only wait for each other."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def judge_batch(model: Model, batch: Read) -> Iterator[tuple[Row, Input, NDArray[np.uint8], Verdicts | None]]:
    """Judge a batch of images of one size; what cannot be read or judged is an error in its row.

    Yields:
        Of each image its row, itself, its pixels, and its own verdict without the axis of the batch, or ``None``.
    """
    if batch.error:
        for one in batch.inputs:
            yield _row(model, one, error=batch.error), one, NOTHING, None
        return
    try:
        verdicts = judge(model, batch.pixels)
    except Exception as problem:  # noqa: BLE001 - what a runtime raises is its own
        for one, pixels in zip(batch.inputs, batch.pixels, strict=True):
            alone = f"it cannot be judged: {problem}" if len(batch.inputs) == 1 else ""
            yield from judge_batch(model, Read([one], [pixels], alone))
        return
    for index, (one, pixels) in enumerate(zip(batch.inputs, batch.pixels, strict=True)):
        single = Verdicts(*(values[index] for values in verdicts))
        seen = model.seen(*pixels.shape[:2])
        size = (pixels.shape[1], pixels.shape[0])
        region = largest_region(single.mask, size, seen) if single.defective else None
        yield _row(model, one, single, region), one, pixels, single


def _finished(written: Sequence[tuple[Row, Future[None] | None]]) -> list[Row]:
    """Wait for pictures, and return the rows; an error of the disk ends the run."""
    for _, future in written:
        if future is not None:
            future.result()
    return [row for row, _ in written]


def _row(
    model: Model, one: Input, verdict: Verdicts | None = None, region: Region | None = None, error: str = ""
) -> Row:
    size, modified = stamp(one.path) if one.content is None else (len(one.content), 0)
    return {
        "path": str(one.path),
        "score": None if verdict is None else round(float(verdict.score), 6),
        "label": ERROR if verdict is None else verdict_of(verdict.defective),
        "threshold": model.thresholds[0],
        **{f"defect_{name}": getattr(region, name, None) for name in Region._fields},
        "truth": "" if one.defective is None else verdict_of(one.defective),
        "error": error,
        "name": one.name,
        "bytes": size,
        "modified": modified,
    }


def _draw(
    folder: Path, model: Model, row: Row, true_mask: Path | None, pixels: NDArray[np.uint8], verdict: Verdicts
) -> None:
    """Write the pictures of an image: the overlay for people, and the parts that the report puts together."""
    seen = model.seen(*pixels.shape[:2])
    photograph, colours = shrink(pixels), find_colours(verdict.anomaly_map, model.thresholds[1])
    mask = verdict.mask if verdict.defective else None
    title = f"{row['label']}  {row['score']:.3f}"
    write(overlay(photograph, colours, mask, title, seen), folder / OVERLAYS / f"{row['name']}.jpg")
    part = folder / PARTS / row["name"]
    write(photograph, part.with_name(f"{part.name}.jpg"))
    if max(colours.shape) > FINE_MAP:
        # Models see no finer than a quarter of their input, and the browser enlarges what it shows.
        half = colours.shape[1] // 2, colours.shape[0] // 2
        colours = np.asarray(cv2.resize(colours, half, interpolation=cv2.INTER_AREA), np.uint8)
    left, top, right, bottom = seen
    rows, columns = colours.shape
    # Of a cropped image, the map lies at its place in the whole one.
    whole = spread(colours, (round(rows / (bottom - top)), round(columns / (right - left))), seen)
    write(whole, part.with_name(f"{part.name}.map.png"), colour_scale())
    if true_mask is not None:
        try:
            with Image.open(true_mask) as opened:
                truth = (np.asarray(opened.convert("L")) > 0).astype(np.uint8)
        except UNREADABLE as error:
            logger.warning("The true mask %s is not shown, for it cannot be read: %s", true_mask, error)
            return
        write(spread(truth, photograph.shape), part.with_name(f"{part.name}.mask.png"), TRUTH)

"""How vae_attention's cost grows: ``python docs/studies/scaling.py --category FOLDER``.

Two measurements, each fit and each runtime in a process of its own, resumable as the comparison is:

- memory of the fit and size of the model against the number of training images. Where the category has too few, its
  images are repeated, turned and mirrored;
- latency against image size, as a ratio to the bare backbone at that size.
"""

import argparse
import logging
import shutil
from dataclasses import replace
from itertools import cycle, islice, product
from pathlib import Path

import pandas as pd
from PIL import Image, ImageOps

from anomalib_vae_attention.benchmark.command import add_backbone_arguments
from anomalib_vae_attention.benchmark.comparison import prepare_weights, run_cells, run_latencies
from anomalib_vae_attention.benchmark.plan import BACKBONE, Cell, canonical_name
from anomalib_vae_attention.benchmark.tables import cells_table, latency_table
from anomalib_vae_attention.common.atomic_files import write_table
from anomalib_vae_attention.common.machine import cores
from anomalib_vae_attention.common.mvtec_layout import MASKS, TEST, TRAIN_GOOD, list_images, locate_category

logger = logging.getLogger(__name__)

TURNS = [(angle, mirrored) for mirrored, angle in product((False, True), (0, 90, 180, 270))]
TEST_IMAGES = 16


def make_category(source: Path, target: Path, count: int, side: int | None = None) -> Path:
    """Copy a category with another number or size of images.

    Args:
        source: Folder of the category.
        target: Folder to make; if it exists, it is complete.
        count: Number of training images, 1 or more; test images are :data:`TEST_IMAGES` at most of each kind.
        side: Height and width that all images are resized to, in pixels; their own by default.

    Returns:
        The folder, absolute.
    """
    if target.exists():
        return target.resolve()
    making = target.with_name(f".{target.name}")
    shutil.rmtree(making, ignore_errors=True)
    files = list_images(source / TRAIN_GOOD)
    # Every image as it is before any is turned.
    for index, ((angle, mirrored), file) in enumerate(islice(cycle(product(TURNS, files)), count)):
        _copy(file, making / TRAIN_GOOD / f"{index:05}.png", side, angle, mirrored=mirrored)
    for part in (TEST, MASKS):
        for folder in sorted(path for path in (source / part).iterdir() if path.is_dir()):
            for file in sorted(folder.iterdir())[:TEST_IMAGES]:
                _copy(file, making / part / folder.name / f"{file.stem}.png", side)
    making.rename(target)
    return target.resolve()


def _copy(source: Path, target: Path, side: int | None, angle: int = 0, *, mirrored: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        turned = (ImageOps.mirror(image) if mirrored else image).rotate(angle, expand=True)
        if side is not None:
            # Nearest, because masks are copied too.
            turned = turned.resize((side, side), Image.Resampling.NEAREST)
        turned.save(target, compress_level=1)


def _measure(name: str, cells: list[Cell], environment: dict[str, str], parsed: argparse.Namespace) -> bool:
    """Run the cells of one measurement, print and write its table, and say whether all went well."""
    output: Path = parsed.output
    results = run_cells(cells, output, environment)
    measured = run_latencies(cells, results, output, environment, parsed.runtimes, parsed.threads)
    table = memory_table(cells_table(cells, results)) if name == "memory" else size_table(latency_table(measured))
    write_table(output / f"{name}.csv", table)
    print(table.round(2).to_string(index=False, na_rep="-"))
    print(f"Written to {(output / f'{name}.csv').resolve()}\n")
    return all(result["status"] == "done" for result in results)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", type=Path, required=True, help="folder of a category in MVTec AD's layout")
    parser.add_argument("--models", nargs="+", default=["vae_attention", "vae_attention:gaussian"], help="models")
    parser.add_argument("--counts", nargs="*", type=int, default=[100, 200, 400, 800], help="numbers of images")
    parser.add_argument("--sizes", nargs="*", type=int, default=[128, 256, 512, 1024], help="image sizes, in pixels")
    parser.add_argument("--images", type=int, default=100, help="training images where sizes are compared (100)")
    parser.add_argument("--runtimes", nargs="+", default=["openvino"], help="runtimes where sizes are compared")
    parser.add_argument("--threads", type=int, default=cores(), help="threads for latencies (the number of cores)")
    add_backbone_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("results/scaling"), help="folder (results/scaling)")
    return parser


def memory_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Tabulate memory and size against the number of images.

    Args:
        cells: Table of :func:`.tables.cells_table`.

    Returns:
        A row per model and number of images, with what each further image took since the row before, in KiB.
    """
    columns = ["model", "train_images", "fit_seconds", "memory_fit_mib", "memory_peak_mib", "checkpoint_mib"]
    table = cells[[*columns, "onnx_mib", "openvino_mib", "error"]].sort_values(["model", "train_images"])
    by_model = table.groupby("model")
    further = by_model["train_images"].diff()
    for column, name in (("memory_fit_mib", "fit_kib_per_image"), ("checkpoint_mib", "model_kib_per_image")):
        table[name] = by_model[column].diff() * 1024 / further
    return table


def size_table(latencies: pd.DataFrame) -> pd.DataFrame:
    """Tabulate latency at batch 1 against image size.

    Args:
        latencies: Table of :func:`.tables.latency_table`, whose categories are image sizes.

    Returns:
        A row per runtime, model and size, with the ratio to the bare backbone, and ``us_per_kilopixel``,
        microseconds per thousand pixels: constant where the cost is linear in pixels.
    """
    table = latencies[latencies["measured"] == "batch 1"].copy()
    table["image_size"] = table["category"].astype(int)
    table["us_per_kilopixel"] = table["median_ms"] * 1e6 / table["image_size"] ** 2
    columns = ["runtime", "model", "image_size", "median_ms", "q25_ms", "q75_ms", "ratio_to_backbone"]
    return table[[*columns, "us_per_kilopixel", "error"]].sort_values(["runtime", "model", "image_size"])


def plan_scaling(parsed: argparse.Namespace) -> tuple[list[Cell], list[Cell]]:
    """Make the categories and list the cells.

    Args:
        parsed: Arguments of the command.

    Returns:
        The cells for memory and those for latency; the category of the latter is the image size.

    Raises:
        ValueError: If the category or a model does not exist.
    """
    source = locate_category(parsed.category.parent, parsed.category.name)
    models = [canonical_name(model) for model in parsed.models]
    template = Cell("", "", "", 0, parsed.backbone, tuple(parsed.layers), 256, keep=False, export=True)
    data = parsed.output / "data"
    data.mkdir(parents=True, exist_ok=True)
    by_count, by_size = [], []
    for count in parsed.counts:
        folder = make_category(source, data / f"{source.name}-{count}", count)
        cell = replace(template, category=f"{count} images", folder=str(folder))
        by_count += [replace(cell, model=model) for model in models]
    for side in parsed.sizes:
        folder = make_category(source, data / f"{source.name}-{parsed.images}-{side}px", parsed.images, side)
        export = any(runtime != "eager" for runtime in parsed.runtimes)
        cell = replace(template, category=str(side), folder=str(folder), image_size=side, keep=True, export=export)
        by_size += [replace(cell, model=model) for model in [BACKBONE, *models]]
    return by_count, by_size


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write ``memory.csv`` and ``size.csv``.

    Args:
        arguments: Those of the command line by default.

    Returns:
        Exit code: 1 if a cell failed, 130 after an interruption.
    """
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        by_count, by_size = plan_scaling(parsed)
        environment = prepare_weights(parsed.output, [*by_count, *by_size])
    except ValueError as error:
        parser.error(str(error))
    try:
        went_well = [
            _measure(name, cells, environment, parsed) for name, cells in (("memory", by_count), ("size", by_size))
        ]
    except KeyboardInterrupt:
        logger.warning("Interrupted. What is finished lies in %s; the same command goes on from there.", parsed.output)
        return 130
    return int(not all(went_well))


if __name__ == "__main__":
    raise SystemExit(main())

"""What is compared: models and their variants, categories, and the cells that follow from them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BACKBONE = "backbone"
"""The bare backbone, a model that only runs: the limit that the others' latency is compared with."""
BATCHES = (1, 16)
"""Numbers of images at a time whose latency is measured."""
UNCACHED = "-uncached"
"""Ending of a variant of vae_attention that reads the images twice instead of keeping their features."""
FAST = "-fast"
"""Ending of a variant of patchcore that computes the distances of its coreset faster than anomalib does."""


def _reference(text: str) -> str:
    if text.removesuffix(UNCACHED) not in {"exemplars", "gaussian"}:
        msg = f"it is exemplars or gaussian, with or without {UNCACHED}"
        raise ValueError(msg)
    return text


def _coreset(text: str) -> str:
    ratio = float(text.removesuffix(FAST))
    if not 0 < ratio <= 1:
        msg = "a coreset's ratio lies above 0 and is 1 at most"
        raise ValueError(msg)
    return f"{ratio:g}{FAST if text.endswith(FAST) else ''}"


def _features(text: str) -> int:
    features = int(text)
    if features < 1:
        msg = "the number of features is 1 at least"
        raise ValueError(msg)
    return features


VARIANTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "vae_attention": (_reference, "exemplars"),
    "patchcore": (_coreset, "0.1"),
    "padim": (_features, "100"),
}
"""Model: how its variant is read, and the variant that its name alone stands for."""


def read_model(text: str) -> tuple[str, Any]:
    """Split the name of a model to compare into model and variant.

    Args:
        text: ``MODEL`` or ``MODEL:VARIANT``: the reference of ``vae_attention`` (``exemplars``, ``gaussian``, or either
            with :data:`UNCACHED`), the coreset ratio of ``patchcore``, in (0, 1], with or without :data:`FAST`, or the
            number of features of ``padim``.

    Returns:
        Model and variant, which is the default one where none is given.

    Raises:
        ValueError: If there is no such model or variant; the message says what there is.
    """
    model, _, variant = text.partition(":")
    if model not in VARIANTS:
        msg = f"models: {text!r} is not available; there are {', '.join(VARIANTS)}, each with or without a :VARIANT."
        raise ValueError(msg)
    read, default = VARIANTS[model]
    try:
        return model, read(variant or default)
    except ValueError as error:
        msg = f"models: {text!r} has no such variant: {error}."
        raise ValueError(msg) from error


def canonical_name(text: str) -> str:
    """Return the shortest name of a model to compare: ``patchcore`` for ``patchcore:0.10``.

    Args:
        text: Name as in :func:`read_model`.

    Returns:
        The one name of this model and variant.

    Raises:
        ValueError: As :func:`read_model`.
    """
    model, variant = read_model(text)
    return model if variant == read_model(model)[1] else f"{model}:{variant}"


@dataclass(frozen=True)
class Cell:
    """One model, fitted to one category with one seed.

    Attributes:
        category: The category's name, as it was given.
        folder: The category's folder, absolute.
        model: Canonical name of the model, or :data:`BACKBONE`.
        seed: Seed of everything random.
        backbone: Name of a timm model.
        layers: Names of the backbone's layers.
        image_size: Height and width that images are resized to, in pixels.
        keep: Whether the fitted model and its exports are kept, for the latencies.
        export: Whether it is exported.
    """

    category: str
    folder: str
    model: str
    seed: int
    backbone: str
    layers: tuple[str, ...]
    image_size: int
    keep: bool
    export: bool

    @property
    def key(self) -> str:
        """Name of the folder of its results: readable, and different for every different cell."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        readable = f"{Path(self.folder).name}-{self.model}-seed{self.seed}".replace(":", "-")
        return f"{readable}-{digest}"

    def __str__(self) -> str:
        """Name the cell in the log."""
        return f"{self.model} on {self.category}, seed {self.seed}"


def find_category(data_root: Path, name: str) -> Path:
    """Find a category in MVTec AD's layout.

    Args:
        data_root: Folder of all data.
        name: Path of the category below it.

    Returns:
        Its folder, absolute.

    Raises:
        ValueError: If it is not there or not in this layout; the message says what is missing and what there is.
    """
    if not data_root.is_dir():
        msg = f"data_root: there is no folder {data_root}."
        raise ValueError(msg)
    folder = data_root / name
    for part in ("train/good", "test/good", "ground_truth"):
        if not (folder / part).is_dir():
            there = sorted(
                good.parents[1].relative_to(data_root).as_posix()
                for pattern in ("train/good", "*/train/good", "*/*/train/good")
                for good in data_root.glob(pattern)
            )
            msg = (
                f"categories: {folder} is not a category in MVTec AD's layout: it has no folder {part}. "
                f"Available in {data_root}: {', '.join(there) or 'none'}."
            )
            raise ValueError(msg)
    return folder.resolve()


def plan_cells(
    categories: dict[str, Path],
    models: Sequence[str],
    seeds: Sequence[int],
    backbone: str,
    layers: Sequence[str],
    image_size: int,
    keep: bool,
    export: bool,
) -> list[Cell]:
    """List the cells of a comparison, one category after the other, the bare backbone first.

    Args:
        categories: Name and folder of each category.
        models: Canonical names of the models.
        seeds: Seeds, the first one that whose models may be kept.
        backbone: Name of a timm model, the same for all.
        layers: Its layers, the same for all.
        image_size: Height and width that images are resized to, in pixels.
        keep: Whether the models of the first seed are kept, for the latencies, and the bare backbone with them.
        export: Whether these are exported, too.

    Returns:
        The cells in the order of their running.
    """
    common = (backbone, tuple(layers), image_size)
    cells = []
    for name, folder in categories.items():
        for seed in seeds:
            kept = keep and seed == seeds[0]
            names = [BACKBONE, *models] if kept else models
            cells += [Cell(name, str(folder), model, seed, *common, kept, kept and export) for model in names]
    return cells


def read_cell(content: dict[str, Any]) -> Cell:
    """Make a cell of what was stored of it in JSON."""
    return Cell(**{**content, "layers": tuple(content["layers"])})

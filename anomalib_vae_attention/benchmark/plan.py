"""What is compared: models, their variants and layers, and the cells that follow from them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

OURS = "vae_attention"
BACKBONE = "backbone"
"""The bare backbone, a model that only runs: the limit that the others' latency is compared with."""
BATCHES = (1, 16)
"""Numbers of images at a time whose latency is measured."""
GPU_BATCHES = (1, 16, 64)
"""The same on a GPU."""
CUDA = "cuda"
GPU_RUNTIMES = (CUDA, "cuda-graph", "cuda-compile-graph", "cuda-compile")
"""Runtimes on a GPU: :data:`CUDA`, then options of :func:`.runtimes.on_gpu`."""
UNCACHED = "-uncached"
"""Ending of a variant of vae_attention that reads the images twice instead of keeping their features."""
FAST = "-fast"
"""Ending of a variant of patchcore that computes the distances of its coreset faster than anomalib does."""


def _coreset(text: str) -> str:
    ratio = float(text.removesuffix(FAST))
    if not 0 < ratio <= 1:
        msg = "a coreset's ratio lies above 0 and is 1 at most"
        raise ValueError(msg)
    return f"{ratio:g}{FAST if text.endswith(FAST) else ''}"


def _count(text: str) -> int | None:
    if text and int(text) < 1:
        msg = "the number is 1 at least"
        raise ValueError(msg)
    return int(text) if text else None


VARIANTS: dict[str, tuple[Callable[[str], Any], str]] = {
    # Which references there are is known where torch is imported, in weights.py.
    OURS: (str, "exemplars"),
    "patchcore": (_coreset, "0.1"),
    "padim": (_count, "100"),
}
"""Model: how its variant is read, and the variant that its name alone stands for. The variant of any other model of
anomalib is its number of epochs; its name alone leaves that to the model."""


def read_model(text: str) -> tuple[str, Any]:
    """Split the name of a model, ``MODEL`` or ``MODEL:VARIANT``, into model and variant, a default where it has none.

    Raises:
        ValueError: If there is no such variant, or the name cannot be a model's; the message says what there is.
    """
    model, _, variant = text.partition(":")
    if not model.isidentifier():
        msg = f"models: {text!r} is not available; write {', '.join(VARIANTS)} or another model of anomalib."
        raise ValueError(msg)
    read, default = VARIANTS.get(model, (_count, ""))
    try:
        return model, read(variant or default)
    except ValueError as error:
        msg = f"models: {text!r} has no such variant: {error}."
        raise ValueError(msg) from error


def canonical_name(text: str) -> str:
    """Return the shortest name of a model: ``patchcore`` for ``patchcore:0.10``; errors as :func:`read_model`."""
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
        image_size: Side of the squares that images are resized to, in pixels, or height and width.
        keep: Whether the fitted model and its exports are kept, for the latencies.
        export: Whether it is exported.
        own_layers: Whether its layers are not those of the run, and therefore part of its name.
        accelerator: What it is fitted on: ``cpu`` or ``gpu``.
    """

    category: str
    folder: str
    model: str
    seed: int
    backbone: str
    layers: tuple[str, ...]
    image_size: int | tuple[int, int]
    keep: bool
    export: bool
    own_layers: bool = False
    accelerator: str = "cpu"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that images are resized to, in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def label(self) -> str:
        """Name of the model in tables: ``padim``, or ``padim@blocks.2+blocks.4``."""
        return f"{self.model}@{'+'.join(self.layers)}" if self.own_layers else self.model

    @property
    def key(self) -> str:
        """Name of the folder of its results: readable, and different for every different cell, however it is named."""
        without = {"own_layers", *(["accelerator"] if self.accelerator == "cpu" else [])}
        content = {name: value for name, value in asdict(self).items() if name not in without}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
        readable = f"{Path(self.folder).name}-{self.model}-seed{self.seed}".replace(":", "-")
        return f"{readable}-{digest}"

    def __str__(self) -> str:
        """Name the cell in the log."""
        return f"{self.label} on {self.category}, seed {self.seed}"


def plan_cells(categories: dict[str, Path], models: Sequence[str], seeds: Sequence[int], template: Cell) -> list[Cell]:
    """List the cells of a comparison, one seed after the other, the bare backbone first.

    Args:
        categories: Name and folder of each category.
        models: Names of models, each as :func:`read_model` takes it or followed by ``@`` and layers of its own, joined
            by ``+``.
        seeds: Seeds, the first one that whose models may be kept.
        template: Backbone, layers, image size and accelerator of all; ``keep`` and ``export`` of the first seed's
            models, which are compared with the bare backbone if they are kept.

    Returns:
        The cells in the order of their running, none twice.

    Raises:
        ValueError: As :func:`read_model`.
    """
    cells: dict[str, Cell] = {}
    for seed in dict.fromkeys(seeds):
        keep = template.keep and seed == seeds[0]
        for category, folder in categories.items():
            for text in [BACKBONE, *models] if keep else models:
                name, _, own = text.partition("@")
                layers = tuple(own.split("+")) if own else template.layers
                if set(layers) == set(template.layers):
                    layers = template.layers
                model = name if name == BACKBONE else canonical_name(name)
                cell = replace(
                    template,
                    category=category,
                    folder=str(folder),
                    model=model,
                    seed=seed,
                    layers=layers,
                    keep=keep,
                    export=keep and template.export,
                    own_layers=layers != template.layers,
                )
                cells.setdefault(cell.key, cell)
    return list(cells.values())


def read_cell(content: dict[str, Any]) -> Cell:
    """Make a cell of what was stored of it in JSON."""
    return Cell(**{**content, "layers": tuple(content["layers"])})

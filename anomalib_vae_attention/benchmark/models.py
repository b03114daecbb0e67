"""The models that are compared, on the same backbone, layers and pre-processing."""

import inspect
from pathlib import Path
from typing import Any

import anomalib.models
import torch
from anomalib import PrecisionType
from anomalib.models import Padim, Patchcore
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from anomalib.utils.path import convert_snake_to_pascal_case
from torch import nn

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.backbone import Backbone
from anomalib_vae_attention.common.argument_checks import require_choice
from anomalib_vae_attention.common.machine import available_gib
from anomalib_vae_attention.common.mvtec_layout import TRAIN_GOOD, list_images
from anomalib_vae_attention.reference import REFERENCES

from .coreset import fit_gib, use_fast_coreset
from .plan import BACKBONE, FAST, OURS, UNCACHED, Cell, read_model


class BareBackbone(nn.Module):
    """Pre-processing and the backbone's layers as timm builds them, without blocks after the last, and nothing else."""

    def __init__(self, backbone: Backbone, pre_processor: PreProcessor) -> None:
        super().__init__()
        self.pre_processor = pre_processor
        self.backbone = backbone

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map images ``(B, 3, H, W)`` in [0, 1] to the layers, each of shape ``(B, C_l, h_l, w_l)``."""
        return tuple(self.backbone(self.pre_processor(image)))


def find_model_class(name: str) -> type[AnomalibModule]:
    """Find the class of a model of anomalib by its name in snake case, such as ``stfpm``.

    Raises:
        ValueError: If there is none; the message lists what there is.
    """
    found = getattr(anomalib.models, convert_snake_to_pascal_case(name), None)
    if inspect.isclass(found) and issubclass(found, AnomalibModule):
        return found
    msg = f"models: {name!r} is not available; anomalib has {', '.join(sorted(anomalib.models.list_models()))}."
    raise ValueError(msg)


def require_model(text: str) -> None:
    """Raise a ``ValueError`` unless there is a model, with or without a variant, and in ours the reference."""
    name, variant = read_model(text)
    if name == OURS:
        require_choice(f"models: the reference in {text!r}", variant.removesuffix(UNCACHED), list(REFERENCES))
    else:
        find_model_class(name)


def build_model(cell: Cell) -> AnomalibModule | BareBackbone:
    """Make the model of a cell, or the bare backbone; not fitted, without metrics and pictures.

    A model without an argument ``backbone`` keeps its own, and its own pre-processing.

    Raises:
        ValueError: If the model cannot be made with this backbone, these layers or this variant.
    """
    is_bare = cell.model == BACKBONE
    backbone = Backbone(cell.backbone, cell.layers, pre_trained=is_bare)
    ours = VaeAttention.configure_pre_processor(cell.size, backbone.mean, backbone.std)
    if is_bare:
        return BareBackbone(backbone, PreProcessor(ours.transform)).eval()
    name, variant = read_model(cell.model)
    model_class: Any = VaeAttention if name == OURS else find_model_class(name)
    taken = inspect.signature(model_class).parameters
    options: dict[str, Any] = {"evaluator": False, "visualizer": False}
    if "backbone" in taken:
        # The backbone's own order, finest first, which anomalib's models take for granted.
        given = {"backbone": cell.backbone, "layers": backbone.layers, "layer": backbone.layers[-1]}
        options |= {name: value for name, value in given.items() if name in taken}
        # The others resize as anomalib has them do.
        options["pre_processor"] = ours if model_class is VaeAttention else PreProcessor(ours.transform)
    if model_class is VaeAttention:
        options["reference"] = variant.removesuffix(UNCACHED)
        options["cache_features"] = False if variant.endswith(UNCACHED) else "auto"
    elif model_class is Patchcore:
        if variant.endswith(FAST):
            use_fast_coreset()
        options["coreset_sampling_ratio"] = float(variant.removesuffix(FAST))
    elif model_class is Padim:
        # The default is the paper's number for ResNet-18, or all there are.
        options["n_features"] = variant if ":" in cell.model else min(variant, sum(backbone.channels))
    return model_class(**options)


def require_memory(cell: Cell) -> None:
    """Raise a ``MemoryError`` if a cell is PatchCore's, and its fit would take more memory than is available."""
    name, variant = ("", "") if cell.model == BACKBONE else read_model(cell.model)
    available = available_gib()
    if name != "patchcore" or available is None:
        return
    images = len(list_images(Path(cell.folder, TRAIN_GOOD)))
    backbone = Backbone(cell.backbone, cell.layers, pre_trained=False)
    height, width = backbone(torch.zeros(1, 3, *cell.size))[0].shape[-2:]
    needed = fit_gib(images * height * width, sum(backbone.channels), variant.endswith(FAST))
    if needed > available:
        msg = f"needs about {needed:.1f} GiB for its fit, {available:.1f} GiB available"
        raise MemoryError(msg)


def load_model(cell: Cell, checkpoint: Path) -> AnomalibModule | BareBackbone:
    """Make the model of a cell, load its fitted state from a checkpoint, and put it into evaluation mode."""
    model = build_model(cell)
    if cell.model != BACKBONE:
        # PatchCore's hyper-parameters hold one.
        with torch.serialization.safe_globals([PrecisionType]):
            model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    return model.eval()

"""The models that are compared, on the same backbone, layers and pre-processing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib import PrecisionType
from anomalib.models import Padim, Patchcore
from anomalib.pre_processing import PreProcessor
from torch import nn

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.backbone import Backbone

from .coreset import use_fast_coreset
from .plan import BACKBONE, FAST, UNCACHED, Cell, read_model

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule


class BareBackbone(nn.Module):
    """Pre-processing and the backbone's layers as timm builds them, without blocks after the last, and nothing else.

    Args:
        backbone: The backbone.
        pre_processor: The pre-processor of the models.
    """

    def __init__(self, backbone: Backbone, pre_processor: PreProcessor) -> None:
        super().__init__()
        self.pre_processor = pre_processor
        self.backbone = backbone

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map images ``(B, 3, H, W)`` in [0, 1] to the layers, each of shape ``(B, C_l, h_l, w_l)``."""
        return tuple(self.backbone(self.pre_processor(image)))


def build_model(cell: Cell) -> "AnomalibModule | BareBackbone":
    """Make the model of a cell, not fitted, without metrics and pictures.

    Args:
        cell: The cell.

    Returns:
        Model of anomalib, or the bare backbone.

    Raises:
        ValueError: If the model cannot be made with this backbone, these layers or this variant.
    """
    is_bare = cell.model == BACKBONE
    backbone = Backbone(cell.backbone, cell.layers, pre_trained=is_bare)
    size = (cell.image_size, cell.image_size)
    ours = VaeAttention.configure_pre_processor(size, backbone.mean, backbone.std)
    # The others resize as anomalib has them do.
    anomalibs = PreProcessor(ours.transform)
    if is_bare:
        return BareBackbone(backbone, anomalibs).eval()
    name, variant = read_model(cell.model)
    # The backbone's own order, finest first, which anomalib's models take for granted.
    common: dict[str, Any] = {
        "backbone": cell.backbone,
        "layers": backbone.layers,
        "pre_processor": ours if name == "vae_attention" else anomalibs,
        "evaluator": False,
        "visualizer": False,
    }
    if name == "patchcore":
        if variant.endswith(FAST):
            use_fast_coreset()
        return Patchcore(**common, coreset_sampling_ratio=float(variant.removesuffix(FAST)))
    if name == "padim":
        # The default is the paper's number for ResNet-18, or all there are.
        features = min(variant, sum(backbone.channels)) if ":" not in cell.model else variant
        return Padim(**common, n_features=features)
    return VaeAttention(
        **common,
        reference=variant.removesuffix(UNCACHED),
        cache_features=False if variant.endswith(UNCACHED) else "auto",
    )


def load_model(cell: Cell, checkpoint: Path) -> "AnomalibModule | BareBackbone":
    """Make the model of a cell and load its fitted state.

    Args:
        cell: The cell.
        checkpoint: Its checkpoint; the bare backbone needs none.

    Returns:
        The model, in evaluation mode.
    """
    model = build_model(cell)
    if cell.model != BACKBONE:
        # PatchCore's hyper-parameters hold one.
        with torch.serialization.safe_globals([PrecisionType]):
            model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    return model.eval()

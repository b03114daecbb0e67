"""A variational autoencoder explained by gradient attention, as the anomalib model ``vae_attention``.

The public names are imported on first use (PEP 562): ``import torch`` loads this package through the
``torch.backends`` entry point, and must not pay for anomalib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import EmbeddedAD, OneClassMNIST
    from .image_vae.model import ImageVaeModel
    from .lightning_model import VaeAttention
    from .thresholds.normal_quantile import NormalQuantile
    from .torch_model import VaeAttentionModel

__all__ = ["EmbeddedAD", "ImageVaeModel", "NormalQuantile", "OneClassMNIST", "VaeAttention", "VaeAttentionModel"]

_HOMES = {
    "EmbeddedAD": ".data",
    "ImageVaeModel": ".image_vae.model",
    "NormalQuantile": ".thresholds.normal_quantile",
    "OneClassMNIST": ".data",
    "VaeAttention": ".lightning_model",
    "VaeAttentionModel": ".torch_model",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}; it offers {__all__}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    """List the public names without importing them."""
    return sorted(__all__)

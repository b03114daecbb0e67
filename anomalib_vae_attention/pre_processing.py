"""Resizing that is the same in training, in exported models and in every runtime."""

from typing import Any

import torch
from anomalib.pre_processing import PreProcessor
from torch import nn
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize, Transform


class AntialiasedResize(nn.Module):
    """Bilinear resizing with anti-aliasing, as torchvision's ``Resize(size, antialias=True)``, as two matrix products.

    Runtimes differ in what they make of a resizing that is anti-aliased (OpenVINO leaves it out without a word); of a
    matrix product they make the same. The weights are made from the image's size, which may be open in an export.

    Args:
        size: Height and width to resize to.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Resize images of shape ``(B, C, H, W)`` to ``(B, C, *size)``."""
        # Columns first: OpenVINO 2026.4 takes a product with columns for a fully connected layer, and fails to compile
        # one that a normalisation of the channels follows.
        for dim, size in ((-1, self.size[1]), (-2, self.size[0])):
            given = image.shape[dim]
            # An open size of an export is not an int: asking whether it is equal would fix it.
            if isinstance(given, int) and given == size:
                continue
            weights = resize_weights(size, given, image.device).to(image.dtype)
            image = weights @ image if dim == -2 else image @ weights.T
        return image


def resize_weights(size: int, given: int, device: torch.device | None = None) -> torch.Tensor:
    """Return a line's resizing as a matrix: triangles as wide as the pixels of the coarser of the two lines.

    Args:
        size: Number of pixels after resizing, at least 1.
        given: Number of pixels before, at least 1; a symbol in an export with open sizes.
        device: Where to make it.

    Returns:
        Weights of shape ``(size, given)``, float32; each row sums to 1.
    """
    scale = given / size
    centre = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * scale
    place = torch.arange(given, dtype=torch.float32, device=device) + 0.5
    reach: Any = torch.sym_max(scale, 1.0)
    weights = (1 - (centre[:, None] - place).abs() / reach).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


class SamePreProcessor(PreProcessor):
    """anomalib's pre-processor, but that exported models and inferencers resize as the engine does.

    anomalib leaves anti-aliasing out of exports. A large image is then sharper in them than any that the model learnt
    from, and its score greater: thresholds no longer hold.

    Args:
        transform: What to do with images. A bilinear, anti-aliased ``Resize`` to a height and a width, alone or in a
            ``Compose``, is exported as it is; of others anomalib's exportable version is.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        super().__init__(transform)
        self._keep_antialiasing()

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the transform of a checkpoint."""
        super().load_checkpoint_config(config)
        self._keep_antialiasing()

    def _keep_antialiasing(self) -> None:
        if isinstance(self.transform, Compose) and isinstance(self.export_transform, Compose):
            pairs = zip(self.transform.transforms, self.export_transform.transforms, strict=True)
            self.export_transform = Compose([_exported(*pair) for pair in pairs])
        else:
            self.export_transform = _exported(self.transform, self.export_transform)


def _exported(original: Any, exportable: Any) -> Any:  # noqa: ANN401
    """Return what is exported for a transform, given anomalib's version of it."""
    if not isinstance(original, Resize) or not original.antialias or original.size is None:
        return exportable
    # A name or a member of an enumeration, by torchvision's version.
    interpolation = getattr(original.interpolation, "value", original.interpolation)
    if interpolation == InterpolationMode.BILINEAR.value and len(original.size) == 2:
        return AntialiasedResize((original.size[0], original.size[1]))
    return exportable

"""Resizing that is the same in training, in exported models and in every runtime."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, cast

import torch
from anomalib.data import Batch
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize, Transform
from torchvision.transforms.v2.functional import normalize, resize

from anomalib_vae_attention.scoring import require_raw_images


class AntialiasedResize(nn.Module):
    """Bilinear resizing to a height and width, anti-aliased as torchvision's ``Resize`` is, in every runtime.

    Runtimes differ in what they make of a resizing that is anti-aliased (OpenVINO leaves it out without a word); of
    :func:`resize_along`, which exports have instead, they make the same.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Resize images of shape ``(B, C, H, W)`` to ``(B, C, *size)``."""
        if not torch.compiler.is_compiling():
            return resize(image, list(self.size), antialias=True)
        height, width = self.size
        batch, channels = image.shape[:2]
        # Whole rows are gathered several times as fast as single pixels, and runtimes are fastest at this permutation.
        columns = resize_along(resize_along(image, 2, height).permute(0, 3, 1, 2), 1, width)
        rows = columns.reshape(batch, width, 1, channels * height).permute(0, 3, 1, 2)
        return rows.reshape(batch, channels, height, width)


class SyncFreeNormalize(nn.Module):
    """torchvision's ``Normalize``, but that nothing is sent to a GPU: a CUDA graph cannot be made of that."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = list(mean), list(std)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise images of shape ``(B, C, H, W)``."""
        if not image.is_cuda:
            return normalize(image, self.mean, self.std)
        channels = zip(image.unbind(1), self.mean, self.std, strict=True)
        return torch.stack([(channel - mean) / std for channel, mean, std in channels], 1)


def resize_along(image: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Resize one side of images: each new row is the weighted sum of the few that lie within its triangle.

    The triangle is as wide as two rows of the coarser of the two images, as in torchvision's anti-aliased resizing.

    Args:
        image: Images of any shape; the side that is resized may be open in an export.
        dim: Which side, from 0.
        size: Number of rows after resizing, at least 1.

    Returns:
        Images that have ``size`` rows at ``dim``.
    """
    given = image.shape[dim]
    # An open size of an export is not an int: asking whether it is equal would fix it.
    if isinstance(given, int) and given == size:
        return image
    place, weight = _taps(size, given, image.device)
    weight = weight.to(image.dtype).reshape(*weight.shape, *[1] * (image.ndim - 1 - dim))
    if isinstance(given, int):
        # Runtimes fuse this sum; of an open size its length is not known.
        taps = zip(place.unbind(1), weight.unbind(1), strict=True)
        return reduce(torch.add, [image.index_select(dim, rows) * share for rows, share in taps])
    rows = image.index_select(dim, place.flatten()).unflatten(dim, place.shape)
    return (rows * weight).sum(dim + 1)


def _taps(size: int, given: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of ``given`` pixels make each of ``size``, and with which weights, both of shape ``(size, K)``."""
    scale = given / size
    reach: Any = torch.sym_max(scale, 1.0)
    count: Any = torch.sym_max((2 * given + size - 1) // size, 2)
    centre = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * scale
    first = (centre - reach - 0.5).ceil()
    place = first[:, None] + torch.arange(count, dtype=torch.float32, device=device)
    weight = (1 - (centre[:, None] - place - 0.5).abs() / reach).clamp(min=0) * ((place >= 0) & (place < given))
    return place.clamp(0, given - 1).long(), weight / weight.sum(1, keepdim=True)


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

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Apply the transform to images ``(B, C, H, W)``, as exports do.

        Raises:
            ValueError: If they are none; see :func:`.require_raw_images`.
        """
        require_raw_images(batch)
        output: torch.Tensor = super().forward(batch)
        return output

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Apply the transform to images of the engine, in every loop alike; see :meth:`forward`."""
        del dataloader_idx
        require_raw_images(cast("torch.Tensor", batch.image), getattr(batch, "image_path", None))
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start

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
    if isinstance(original, Normalize):
        return SyncFreeNormalize(original.mean, original.std)
    if not isinstance(original, Resize) or not original.antialias or original.size is None:
        return exportable
    # A name or a member of an enumeration, by torchvision's version.
    interpolation = getattr(original.interpolation, "value", original.interpolation)
    if interpolation == InterpolationMode.BILINEAR.value and len(original.size) == 2:
        return AntialiasedResize((original.size[0], original.size[1]))
    return exportable

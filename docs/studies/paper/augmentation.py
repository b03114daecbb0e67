"""The augmentations of ``configs/paper/mvtec.yaml`` for a whole batch at once, drawn for each image by itself."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812


class Augmentation(NamedTuple):
    """Random mirroring, then random turning, as torchvision does both to one image.

    Attributes:
        flip: Probability of mirroring left and right.
        degrees: Least and greatest angle, counter-clockwise.
        fill: Grey level, from 0 to 1, of what was outside of the image.
    """

    flip: float = 0.0
    degrees: tuple[float, float] = (0.0, 0.0)
    fill: float = 0.0

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mirror and turn images ``(B, C, H, W)``, pixels from 0 to 1, each at random."""
        chance, share = torch.rand(2, len(images), generator=generator, device=images.device)
        mirrored = torch.where((chance < self.flip)[:, None, None, None], images.flip(3), images)
        least, most = self.degrees
        return rotate(mirrored, least + (most - least) * share, self.fill)


def rotate(images: torch.Tensor, degrees: torch.Tensor, fill: float) -> torch.Tensor:
    """Turn each image by an angle of its own: ``torchvision.transforms.v2.functional.rotate``, bilinear.

    Args:
        images: Images of shape ``(B, C, H, W)``.
        degrees: Angles, counter-clockwise, of shape ``(B,)``.
        fill: Value of what was outside of the image.
    """
    height, width = images.shape[2:]
    cosine, sine, zero = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin(), torch.zeros_like(degrees)
    # Rows of the matrix from places in the result to places in the image, in halves of their width and height.
    rows = [cosine, -sine * height / width, zero, sine * width / height, cosine, zero]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    known = F.pad(images, (0, 0, 0, 0, 0, 1), value=1.0)
    turned, share = F.grid_sample(known, grid, align_corners=False).split([images.shape[1], 1], dim=1)
    return (turned - fill) * share + fill


def read_augmentation(config: Mapping[str, Any]) -> Augmentation:
    """Read the augmentations of the training images from a config of ``anomalib fit``.

    Raises:
        ValueError: If there is one that :class:`Augmentation` cannot do.
    """
    compose = (config["data"].get("init_args") or {}).get("train_augmentations") or {}
    transforms = (compose.get("init_args") or {}).get("transforms") or []
    given = {each["class_path"].rpartition(".")[2]: each.get("init_args") or {} for each in transforms}
    others = set(given) - {"Resize", "RandomHorizontalFlip", "RandomRotation"}
    turning = given.get("RandomRotation")
    if others or (turning and turning.get("interpolation") != "bilinear"):
        msg = f"train_augmentations: {sorted(given)} must be a mirroring and a bilinear turning."
        raise ValueError(msg)
    flip = given["RandomHorizontalFlip"].get("p", 0.5) if "RandomHorizontalFlip" in given else 0.0
    if turning is None:
        return Augmentation(flip)
    least, most = turning["degrees"]
    return Augmentation(flip, (least, most), turning.get("fill", 0.0))

"""A few test images with their anomaly maps, the same for every model."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import Normalize

EXAMPLES = 5
"""Most test images of a category that maps are shown of."""


def choose_examples(paths: Sequence[str], labels: Sequence[bool]) -> list[int]:
    """Choose at most :data:`EXAMPLES` of test images, whose folders are called after the kind of defect.

    They are the same for every model: one of each kind of defect, then more, and a good one last. Labels say whether
    there is a defect.

    Returns:
        Positions among the images.
    """
    order = sorted(range(len(paths)), key=lambda index: paths[index])
    kinds: dict[str, list[int]] = {}
    for index in order:
        if labels[index]:
            kinds.setdefault(Path(paths[index]).parent.name, []).append(index)
    defective = [index for turn in zip_longest(*kinds.values()) for index in turn if index is not None]
    good = [index for index in order if not labels[index]]
    return [*defective[: EXAMPLES - 1], *good[:1]]


def take_examples(batches: Sequence[Any], transform: torch.nn.Module | None) -> dict[str, NDArray[Any]]:
    """Take a few test images with their masks and anomaly maps.

    Args:
        batches: Predictions and truth of all test images, raw, with a map per image.
        transform: The pre-processor's, whose normalisation the images have been through.

    Returns:
        ``path`` ``(n,)``, ``image`` ``(n, H, W, 3)`` in [0, 255], ``mask`` and ``map`` ``(n, H, W)``, the image score
        ``score`` ``(n,)``, and ``range``, the median of the maps of all test images and what one pixel in 1000 exceeds.
    """
    paths = [path for batch in batches for path in batch.image_path]
    labels = torch.cat([batch.gt_label for batch in batches]).tolist()
    chosen = choose_examples(paths, labels)

    def take(name: str) -> torch.Tensor:
        values = [value for batch in batches for value in getattr(batch, name)]
        return torch.stack([values[index].squeeze() for index in chosen]).float()

    image = take("image")
    for step in getattr(transform, "transforms", [transform]):
        if isinstance(step, Normalize):
            image = image * torch.tensor(step.std)[:, None, None] + torch.tensor(step.mean)[:, None, None]
    maps = np.concatenate([batch.anomaly_map.float().flatten().numpy() for batch in batches])
    return {
        "path": np.array([paths[index] for index in chosen]),
        "image": (image * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy(),
        "mask": take("gt_mask").numpy().astype(bool),
        "map": take("anomaly_map").numpy(),
        "score": take("pred_score").numpy(),
        "range": np.quantile(maps, [0.5, 0.999]),
    }

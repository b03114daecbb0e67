"""Scores of a fitted model by anomalib's metrics, and maps to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPR, AUPRO, AUROC, F1Max
from numpy.typing import NDArray

METRICS = {
    "image_AUROC": (AUROC, "pred_score", "gt_label"),
    "image_AP": (AUPR, "pred_score", "gt_label"),
    "image_F1": (F1Max, "pred_score", "gt_label"),
    "pixel_AUROC": (AUROC, "anomaly_map", "gt_mask"),
    "pixel_AP": (AUPR, "anomaly_map", "gt_mask"),
    "pixel_F1": (F1Max, "anomaly_map", "gt_mask"),
    "pixel_AUPRO": (AUPRO, "anomaly_map", "gt_mask"),
}
"""Metric of anomalib, prediction and truth. AUPRO is up to a false positive rate of 0.3; F1 is the highest over all
thresholds, chosen on the test images."""
EXAMPLES = 5
"""Most test images of a category that maps are shown of."""


def to_unit_range(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Map the scores of all images linearly to [0, 1].

    anomalib's metrics put scores beyond [0, 1] through a sigmoid, which makes one value of all large ones; its
    post-processor clamps, which makes ties. Both would cost PatchCore and PaDiM, whose scores are distances.

    Args:
        values: Scores or maps of every batch, of any shapes.

    Returns:
        The same, less their least, over the greatest; 0 if they are all alike.
    """
    # In double precision, so that no two scores become one.
    least = min(float(value.min()) for value in values)
    greatest = max(float(value.max()) for value in values)
    scale = (greatest - least) or 1.0
    return [((value.double() - least) / scale).clamp(0, 1) for value in values]


def score(batches: Sequence[ImageBatch]) -> dict[str, float]:
    """Score predictions on the test images.

    Args:
        batches: Predictions and truth of all test images, raw.

    Returns:
        Each of :data:`METRICS`, in [0, 1].
    """
    scaled = {
        name: to_unit_range([getattr(batch, name) for batch in batches]) for name in ("pred_score", "anomaly_map")
    }
    results = {}
    for name, (metric_class, prediction, truth) in METRICS.items():
        metric = metric_class(fields=[prediction, truth])
        for index, batch in enumerate(batches):
            values = {prediction: scaled[prediction][index].reshape(getattr(batch, truth).shape)}
            metric.update(batch.update(in_place=False, **values))
        results[name] = float(metric.compute())
    return results


def choose_examples(paths: Sequence[str], labels: Sequence[bool]) -> list[int]:
    """Choose test images to show: one of each kind of defect, then more, and a good one last.

    Args:
        paths: Files of the test images, whose folder is the kind of defect.
        labels: Whether each has a defect.

    Returns:
        At most :data:`EXAMPLES` positions, the same for every model.
    """
    order = sorted(range(len(paths)), key=lambda index: paths[index])
    kinds: dict[str, list[int]] = {}
    for index in order:
        if labels[index]:
            kinds.setdefault(Path(paths[index]).parent.name, []).append(index)
    turns = max((len(kind) for kind in kinds.values()), default=0)
    defective = [kind[turn] for turn in range(turns) for kind in kinds.values() if turn < len(kind)]
    good = [index for index in order if not labels[index]]
    return [*defective[: EXAMPLES - 1], *good[:1]]


def examples(batches: Sequence[Any], mean: Sequence[float], std: Sequence[float]) -> dict[str, NDArray[Any]]:
    """Take a few test images with their masks and anomaly maps.

    Args:
        batches: Predictions and truth of all test images, raw.
        mean: Mean that the pre-processor took from each channel.
        std: Standard deviation that it divided each channel by.

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

    scale, shift = torch.tensor(std).reshape(3, 1, 1), torch.tensor(mean).reshape(3, 1, 1)
    image = ((take("image") * scale + shift) * 255).round().clamp(0, 255).byte()
    maps = np.concatenate([batch.anomaly_map.float().flatten().numpy() for batch in batches])
    return {
        "path": np.array([paths[index] for index in chosen]),
        "image": image.permute(0, 2, 3, 1).numpy(),
        "mask": take("gt_mask").numpy().astype(bool),
        "map": take("anomaly_map").numpy(),
        "score": take("pred_score").numpy(),
        "range": np.quantile(maps, [0.5, 0.999]),
    }

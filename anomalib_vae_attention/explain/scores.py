"""Scores of predictions by anomalib's metrics, whatever the range of the predictions."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPR, AUPRO, AUROC, F1Max

from anomalib_vae_attention.common.measures import MEASURES

METRICS: dict[str, Any] = {"AUROC": AUROC, "AP": AUPR, "F1": F1Max, "AUPRO": AUPRO}
FIELDS = {"image": ("pred_score", "gt_label"), "pixel": ("anomaly_map", "gt_mask")}
"""Prediction and truth of each half of :data:`MEASURES`."""


def to_unit_range(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Map the scores or maps of all batches linearly to [0, 1]; all are 0 if they are all alike.

    anomalib's metrics put scores beyond [0, 1] through a sigmoid, which makes one value of all large ones; its
    post-processor clamps, which makes ties. Both would cost PatchCore and PaDiM, whose scores are distances.
    """
    # In double precision, so that no two scores become one.
    least = min(float(value.min()) for value in values)
    scale = (max(float(value.max()) for value in values) - least) or 1.0
    return [((value.double() - least) / scale).clamp(0, 1) for value in values]


def score(batches: Sequence[ImageBatch], measures: Iterable[str] = MEASURES) -> dict[str, float]:
    """Score predictions and truth of all test images, raw.

    Returns:
        Some of :data:`MEASURES`, in [0, 1]; without those whose prediction or truth is missing, or that have nothing to
        find.
    """
    results = {}
    for level, (prediction, truth) in FIELDS.items():
        if any(getattr(batch, name) is None for batch in batches for name in (prediction, truth)):
            continue
        if not any(getattr(batch, truth).any() for batch in batches):
            continue
        scaled = to_unit_range([getattr(batch, prediction) for batch in batches])
        for name in (name for name in measures if name.startswith(level)):
            metric = METRICS[name.removeprefix(f"{level}_")](fields=[prediction, truth])
            for batch, values in zip(batches, scaled, strict=True):
                metric.update(batch.update(in_place=False, **{prediction: values.reshape(getattr(batch, truth).shape)}))
            results[name] = float(metric.compute())
    return results

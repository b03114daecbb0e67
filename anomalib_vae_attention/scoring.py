"""How models score: checks before it, in which precision, and scores in (0, 1)."""

from typing import Any

import torch
from torch import nn

SCORE_SHARE = 0.01
"""Share of an anomaly map, the highest, whose mean is the image score."""


def require_scorable(image: torch.Tensor, is_fitted: torch.Tensor) -> None:
    """Check that a model can score images; an export has no such check.

    Args:
        image: Images of shape ``(B, C, H, W)``.
        is_fitted: Whether the model has been fitted, of shape ``()``.

    Raises:
        RuntimeError: If it has not.
        ValueError: If an image is not finite.
    """
    if torch.compiler.is_compiling():
        return
    if not is_fitted:
        msg = "The model has not been fitted: run fit or train first, or load a checkpoint (ckpt_path)."
        raise RuntimeError(msg)
    bad = not_finite(image)
    if bad:
        msg = f"The images at {bad} of the batch have pixels that are not a number or infinite."
        raise ValueError(msg)


def not_finite(image: torch.Tensor) -> list[int]:
    """Find images that cannot be scored.

    Args:
        image: Images of shape ``(B, C, H, W)``.

    Returns:
        The places in the batch, from 0, of those with pixels that are not a number or infinite.
    """
    # The extremes are finite where all is, and reading them writes nothing.
    if torch.stack(image.aminmax()).isfinite().all():
        return []
    return (~image.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()


def finite_images(batch: Any, model: nn.Module) -> torch.Tensor:  # noqa: ANN401
    """Return the images of one of anomalib's batches, in the precision of a model's weights.

    Args:
        batch: Images of shape ``(B, C, H, W)``, with the paths of their files where these are known.
        model: The torch model that is given them.

    Raises:
        ValueError: If an image has pixels that are not finite; the message names its file.
    """
    image: torch.Tensor = batch.image.to(next(model.parameters()).dtype)
    bad = not_finite(image)
    if bad:
        names = [batch.image_path[index] for index in bad] if batch.image_path else bad
        msg = f"Images with pixels that are not a number or infinite: {names}."
        raise ValueError(msg)
    return image


def full_precision(device: torch.device) -> torch.autocast:
    """Compute in the precision of the weights: mixed precision would drop digits that maps consist of."""
    return torch.autocast(device.type, enabled=False)


def to_unit_interval(ratio: torch.Tensor) -> torch.Tensor:
    """Map any real number strictly monotonically into (0, 1), slowly enough never to saturate.

    anomalib's metrics and post-processing expect scores in [0, 1]; its sigmoid would turn every large score into 1.

    Args:
        ratio: Score over that of normal images, of any shape; 0 becomes 0.5, 1 about 0.70, 100 about 0.91.

    Returns:
        ``(1 + sign(ratio) a / (1 + a)) / 2`` with ``a = log(1 + |ratio|)``, of the same shape.
    """
    compressed = ratio.abs().log1p()
    return 0.5 * (1 + ratio.sign() * compressed / (1 + compressed))


def highest_mean(anomaly_map: torch.Tensor) -> torch.Tensor:
    """Score images by what their anomaly maps show: the mean of the highest :data:`SCORE_SHARE` of each.

    A maximum would judge by one noisy cell, a mean over all would not see a small defect. AnomalyDINO (Damm et al.,
    arXiv 2405.14529) takes the same share.

    Args:
        anomaly_map: Maps of shape ``(B, h, w)``.

    Returns:
        Scores of shape ``(B,)``, in the units of the maps.
    """
    count = max(1, round(SCORE_SHARE * anomaly_map.shape[-2] * anomaly_map.shape[-1]))
    return anomaly_map.flatten(1).topk(count, sorted=False).values.mean(1)

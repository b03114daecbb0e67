"""How the torch models score: checks before it, and scores in (0, 1)."""

import torch


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

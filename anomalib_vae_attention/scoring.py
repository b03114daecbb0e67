"""How models score: checks before it, in which precision, in (0, 1), and what cannot be judged is defective."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from anomalib.data import InferenceBatch
from torch import nn

SCORE_SHARES = (0.001, 0.01, 0.1, 1.0)
"""Shares of an anomaly map, the highest, whose means make the image score: a small defect fills one, wear another."""
LARGEST = 2.0**14
"""Pixels beyond are not scored, nor are those that are not finite; half precision can tell them apart."""
FAR = 8.0
"""How far pixels may lie from [0, 1]: augmentations go a little beyond, bytes as floats much further."""


def may_look(values: torch.Tensor) -> bool:
    """Say whether a function may look at the values of tensors: not while a graph is made of it.

    That is an export, what ``torch.compile`` makes, or a CUDA graph: each is replayed with other values.
    """
    return not (torch.compiler.is_compiling() or (values.is_cuda and torch.cuda.is_current_stream_capturing()))


def require_raw_images(image: torch.Tensor, names: Sequence[str] | None = None) -> None:
    """Check that images are what a pre-processor takes; an export has no such check.

    Args:
        image: Images of shape ``(B, 3, H, W)`` or ``(B, 1, H, W)``, floats from 0 to 1. Pixels that are not finite are
            left to :func:`fail_safe`.
        names: Their files, if these are known.

    Raises:
        TypeError: If they are no tensor.
        ValueError: If they have another shape or type, or values far from [0, 1].
    """
    where = f" ({', '.join(names)})" if names else ""
    if not isinstance(image, torch.Tensor):
        msg = f"Images must be a tensor of shape (batch, 3, height, width), but are {type(image)}: torch.from_numpy."
        raise TypeError(msg)
    if torch.jit.is_tracing() or not may_look(image):
        return
    if image.ndim != 4 or image.shape[1] not in {1, 3}:
        msg = (
            f"Images must have the shape (batch, 3, height, width), or one grey channel, but have {tuple(image.shape)}"
            f"{where}: move the colours to the second place, and leave out transparency."
        )
        raise ValueError(msg)
    if not image.is_floating_point():
        msg = f"Images must be floats from 0 to 1, but are {image.dtype}{where}: divide bytes by 255."
        raise ValueError(msg)
    if not image.numel():
        msg = f"There are no images, or none with a pixel: the batch has the shape {tuple(image.shape)}{where}."
        raise ValueError(msg)
    least, greatest = (float(extreme) for extreme in image.aminmax())
    if max(-least, greatest - 1) > FAR and max(-least, greatest) < float("inf"):
        msg = (
            f"Images must have pixels between 0 and 1, but they lie between {least:g} and {greatest:g}{where}: divide "
            "by 255 what was a byte."
        )
        raise ValueError(msg)


def as_floats(image: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Return images in the precision of a model's weights.

    Args:
        image: Images of shape ``(B, C, H, W)``, floats of any precision.
        model: The torch model that is given them.

    Raises:
        ValueError: If they are none; an export has no such check.
    """
    if not torch.compiler.is_compiling() and (image.ndim != 4 or not image.numel() or not image.is_floating_point()):
        msg = f"The model takes floats of shape (batch, 3, height, width), not {image.dtype} of {tuple(image.shape)}."
        raise ValueError(msg)
    return image.to(next(model.parameters()).dtype)


def only_scorable(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Put 0 in the place of pixels that cannot be scored, so that no runtime computes with them.

    Args:
        image: Images of shape ``(B, C, H, W)``, as the pre-processor makes them.

    Returns:
        Images of the same shape, all finite, and whether each had no such pixel, booleans of shape ``(B,)``.
    """
    # A comparison with what is not a number is false everywhere; minima and maxima may ignore it.
    scorable = image.abs() < LARGEST
    return torch.where(scorable, image, 0.0), scorable.flatten(1).all(1)


def fail_safe(whole: torch.Tensor, score: torch.Tensor, anomaly_map: torch.Tensor) -> InferenceBatch:
    """Call an image defective that cannot be judged.

    Args:
        whole: Whether each image could be scored, booleans of shape ``(B,)``; see :func:`only_scorable`.
        score: Scores of shape ``(B,)``, less than 1 where they are numbers.
        anomaly_map: Anomaly maps of shape ``(B, 1, H, W)``, less than 1 where they are numbers.

    Returns:
        Scores and maps; of images that are not whole, or where any of these is not a number, both are 1.
    """
    judged = whole & (score < 1) & (anomaly_map < 1).flatten(1).all(1)
    return call_defective(~judged, InferenceBatch(pred_score=score, anomaly_map=anomaly_map))


def call_defective(defective: torch.Tensor, prediction: InferenceBatch) -> InferenceBatch:
    """Call images defective, whatever the prediction.

    Args:
        defective: Which images, booleans of shape ``(B,)``.
        prediction: Scores and labels of shape ``(B,)``, maps and masks of shape ``(B, 1, H, W)``, or ``None``.

    Returns:
        The prediction with a score and a map of 1, and a label and a mask that are true, for these images.
    """

    def put(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        place = defective.reshape(-1, *[1] * (tensor.ndim - 1))
        return tensor | place if tensor.dtype == torch.bool else torch.where(place, 1.0, tensor)

    return InferenceBatch(*(put(tensor) for tensor in prediction))


def require_scorable(image: torch.Tensor, is_fitted: torch.Tensor) -> None:
    """Check that a model can score images; an export and a CUDA graph have no such check.

    Args:
        image: Images of shape ``(B, C, H, W)``.
        is_fitted: Whether the model has been fitted, of shape ``()``.

    Raises:
        RuntimeError: If it has not.
        ValueError: If an image is not finite.
    """
    if not may_look(image):
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
    image = as_floats(batch.image, model)
    bad = not_finite(image)
    if bad:
        names = [batch.image_path[index] for index in bad] if batch.image_path else bad
        msg = f"Images with pixels that are not a number or infinite: {names}."
        raise ValueError(msg)
    return image


@contextmanager
def full_precision(device: torch.device) -> Generator[None, None, None]:
    """Compute in the precision of the weights: mixed precision, and TF32, would drop digits that maps consist of.

    PyTorch lets convolutions on a GPU compute in TF32 by default, which moved scores by .008. Lightning advises its
    users to let products, too (``torch.set_float32_matmul_precision``), of which distances consist here. These settings
    are those of the whole process; they are put back.
    """
    with ExitStack() as settings:
        settings.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            _without_tf32(settings)
        yield


def _without_tf32(settings: ExitStack) -> None:
    """Let products and convolutions on a GPU keep all digits.

    Args:
        settings: What puts PyTorch's settings back when it is closed.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    names: list[tuple[Any, Any, Any, Any]] = [
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest", products),
        (
            partial(getattr, convolutions, "allow_tf32"),
            partial(setattr, convolutions, "allow_tf32"),
            False,
            getattr(convolutions, "conv", None),
        ),
    ]
    for read, write, exact, newer in names:
        try:
            before = read()
        except RuntimeError:
            # The program has used names that PyTorch has since 2.9, which are not to be mixed with the older ones.
            settings.callback(setattr, newer, "fp32_precision", newer.fp32_precision)
            newer.fp32_precision = "ieee"
        else:
            settings.callback(write, before)
            write(exact)


def to_unit_interval(ratio: torch.Tensor) -> torch.Tensor:
    """Map any real number strictly monotonically into (0, 1), slowly enough never to saturate.

    anomalib's metrics and post-processing expect scores in [0, 1]; its sigmoid would turn every large score into 1.

    Args:
        ratio: Score over that of normal images, of any shape; 0 becomes 0.5, 1 about 0.70, 100 about 0.91.

    Returns:
        ``(1 + sign(ratio) a / (1 + a)) / 2`` with ``a = log(1 + |ratio|)``, of the same shape.
    """
    compressed = ratio.abs().log1p()
    compressed = compressed / (1 + compressed)
    return 0.5 + 0.5 * torch.where(ratio < 0, -compressed, compressed)


def highest_means(anomaly_map: torch.Tensor) -> torch.Tensor:
    """Return what image scores are made of: the mean of the highest part of each map, for each of :data:`SCORE_SHARES`.

    A maximum would judge by one noisy cell, a mean over all would not see a small defect. AnomalyDINO (Damm et al.,
    arXiv 2405.14529) takes the highest 1 % alone.

    Args:
        anomaly_map: Maps of shape ``(B, h, w)``.

    Returns:
        Means of shape ``(B, number of shares)``, in the units of the maps, the highest first.
    """
    # Traced sizes are tensors.
    height, width = (int(side) for side in anomaly_map.shape[-2:])
    cells = anomaly_map.flatten(1)
    counts = [max(1, round(share * height * width)) for share in SCORE_SHARES[:-1]]
    highest = cells.topk(counts[-1]).values
    return torch.stack([*(highest[:, :count].mean(1) for count in counts), cells.mean(1)], 1)

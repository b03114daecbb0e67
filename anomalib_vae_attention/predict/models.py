"""A trained or exported model as what takes a batch of images to verdicts, whatever its runtime."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from anomalib.data import InferenceBatch
from numpy.typing import NDArray
from torchvision.transforms.v2 import Compose, Normalize, Resize, ToDtype

from anomalib_vae_attention.calibrate.exported import open_export
from anomalib_vae_attention.common.models import find_model
from anomalib_vae_attention.lightning_model import VaeAttention

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, as shares of its width and height."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Verdicts(NamedTuple):
    """What a model says of a batch of images.

    Attributes:
        score: Image scores, of shape ``(B,)``, from 0 to 1.
        defective: Whether each score is above the threshold, of shape ``(B,)``.
        anomaly_map: Of shape ``(B, h, w)``, from 0 to 1.
        mask: Whether each pixel of the map is above its threshold, of shape ``(B, h, w)``.
    """

    score: NDArray[np.float32]
    defective: NDArray[np.bool_]
    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.bool_]


class Model(NamedTuple):
    """A loaded model.

    Attributes:
        file: Where it was loaded from.
        score: Takes images, floats from 0 to 1 of shape ``(B, 3, H, W)``, to verdicts.
        thresholds: Of image scores and of map pixels, on the scale of the verdicts.
        seen: Takes the height and width of an image to the part that maps show: :data:`WHOLE` but for crops.
        module: The anomalib model of a checkpoint, in evaluation mode; ``None`` for an export.
    """

    file: Path
    score: Callable[[NDArray[np.float32]], Verdicts]
    thresholds: tuple[float, float]
    seen: Callable[[int, int], Box]
    module: VaeAttention | None = None


def load_model(path: Path, device: str | None = None, threads: int | None = None) -> Model:
    """Load a checkpoint (``.ckpt``) or an export (``.onnx``, ``.xml``), or the one that a folder holds.

    Args:
        path: The file or folder; see :func:`.find_model`, also for its errors.
        device: Device of torch for a checkpoint; a GPU for ``None``, where there is one.
        threads: How many threads compute on the CPU; the runtime's choice for ``None``. Torch has one number for all
            models of a process.

    Raises:
        ValueError: If it is something else, has no thresholds, or cannot be computed on the device.
    """
    file = find_model(path)
    require_device(file, device)
    if file.suffix != ".ckpt":
        return _load_export(file, threads)
    if threads is not None:
        torch.set_num_threads(threads)
    return _load_checkpoint(file, device)


def require_device(file: Path, device: str | None) -> None:
    """Raise a ``ValueError`` if a device other than the CPU is asked for an export."""
    if file.suffix != ".ckpt" and device not in {None, "cpu"}:
        msg = f"{file} is an export, which is computed on the CPU: {device!r} is for checkpoints."
        raise ValueError(msg)


def judge(model: Model, images: Sequence[NDArray[np.uint8]]) -> Verdicts:
    """Judge images of one size, of shape ``(H, W, 3)``: the one place where predictions are computed."""
    batch = np.empty((len(images), 3, *images[0].shape[:2]), np.float32)
    for image, floats in zip(images, batch, strict=True):
        # Contiguous, or runtimes would copy it; to floats first, because bytes are divided slower.
        for plane, values in zip(floats, cv2.split(image), strict=True):
            plane[...] = values
            np.divide(plane, np.float32(255), out=plane)
    return model.score(batch)


def as_verdicts(found: InferenceBatch) -> Verdicts:
    """Take what a checkpoint's model returns to verdicts."""
    fields: list[Any] = [found.pred_score, found.pred_label, found.anomaly_map, found.pred_mask]
    score, label, anomaly_map, mask = (field.cpu().numpy() for field in fields)
    size = (score.size, *anomaly_map.shape[-2:])
    return Verdicts(score.reshape(-1), label.reshape(-1), anomaly_map.reshape(size), mask.reshape(size))


def _load_checkpoint(file: Path, device: str | None) -> Model:
    module: Any = VaeAttention.load_from_checkpoint(file, map_location="cpu").eval()
    post = module.post_processor
    thresholds = tuple(float(getattr(post, f"normalized_{level}_threshold", np.nan)) for level in ("image", "pixel"))
    raw = [float(getattr(post, f"{level}_threshold", np.nan)) for level in ("image", "pixel")]
    if not np.isfinite([*thresholds, *raw]).all():
        msg = (
            f"{file} has no thresholds: set them with `vae-attention calibrate {file} FOLDER_OF_GOOD_IMAGES "
            "--false_positive_rate 0.05`."
        )
        raise ValueError(msg)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        module.to(device)
    # What PyTorch raises depends on what is wrong with the device.
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        msg = f"The model cannot be put on the device {device!r}: {str(error).splitlines()[0]}"
        raise ValueError(msg) from error

    def score(batch: NDArray[np.float32]) -> Verdicts:
        with torch.inference_mode():
            return as_verdicts(module(torch.from_numpy(batch).to(module.device)))

    return Model(file, score, thresholds, partial(_seen_part, module.pre_processor), module)  # type: ignore[arg-type]


def _load_export(file: Path, threads: int | None) -> Model:
    export = open_export(file)
    run, thresholds = export.open(threads), (0.5, 0.5)

    def score(batch: NDArray[np.float32]) -> Verdicts:
        one, anomaly_map = run(batch)
        maps = anomaly_map.reshape(len(batch), *anomaly_map.shape[-2:])
        # Exports compare with these numbers, or open_export would have refused them.
        return Verdicts(one.reshape(-1), one.reshape(-1) > thresholds[0], maps, maps > thresholds[1])

    return Model(file, score, thresholds, lambda _height, _width: WHOLE)


def _seen_part(pre_processor: Any, height: int, width: int) -> Box:  # noqa: ANN401
    """Find the part of an image that is left by a checkpoint's transforms, by what they make of coordinates."""
    transform = getattr(pre_processor, "transform", None)
    steps = transform.transforms if isinstance(transform, Compose) else [transform]
    if all(step is None or isinstance(step, Resize | Normalize | ToDtype) for step in steps):
        return WHOLE
    across = ((torch.arange(width) + 0.5) / width).expand(height, width)
    down = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    place, zero, one = (
        pre_processor(image[None])[0]
        for image in (torch.stack([across, down, down]), torch.zeros(3, height, width), torch.ones(3, height, width))
    )
    # Normalisation is linear: what becomes of 0 and 1 takes it back.
    x, y = ((place - zero) / (one - zero))[:2]
    halves = [(x[0, 1] - x[0, 0]) / 2, (y[1, 0] - y[0, 0]) / 2]
    left, top, right, bottom = x[0, 0] - halves[0], y[0, 0] - halves[1], x[0, -1] + halves[0], y[-1, 0] + halves[1]
    return tuple(min(max(float(edge), 0.0), 1.0) for edge in (left, top, right, bottom))  # type: ignore[return-value]

"""Exports of a model: whole or not there, in one file where that can be, and telling what they are."""

import json
import logging
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from anomalib.data import InferenceBatch
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule
from torch import nn

from anomalib_vae_attention.common.atomic_files import write_files
from anomalib_vae_attention.common.machine import versions
from anomalib_vae_attention.scoring import call_defective, full_precision

from .openvino_ir import CALIBRATION_IMAGES, finish_openvino, quantise_backbone
from .provenance import MADE_WITH

logger = logging.getLogger(__name__)

OPSET = 18
"""anomalib asks for 14, and torch's exporter, which begins at 18, fails to convert to it."""
ONE_FILE_LIMIT = 1_900_000_000
"""Bytes of weights up to which an ONNX export is one file: its format ends at 2 GiB."""
RAW_THRESHOLDS = ("image_threshold", "pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")
"""Attributes of anomalib's post-processors, in the units of the torch model's scores and maps."""
ANOMALIB_THRESHOLDS = "anomalib's post-processor: the best F1 on the validation set; null where that had no labels"
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {"image": ((), (1,)), "pixel": ((1, 1, 1, 1), (1, 1, 1))}
"""Shapes of the terms of :class:`Judgement`: all differ, or exporters would merge those of equal value."""
TERMS = ("slope", "offset")


def raw_thresholds(post_processor: Any) -> dict[str, float | None]:  # noqa: ANN401
    """Return the thresholds and ranges of a post-processor, ``None`` where one is not set."""
    raw = {name: float(getattr(post_processor, name)) for name in RAW_THRESHOLDS if hasattr(post_processor, name)}
    return {name: None if math.isnan(value) else value for name, value in raw.items()}


def describe(model: Any) -> dict[str, str]:  # noqa: ANN401 - a mixin's self
    """Tell what somebody must know who has an export of a model of anomalib and nothing else.

    Returns:
        Text by name: versions, the input, each output, thresholds and what they are from, training images, precision.
    """
    training = getattr(model, "provenance", {}).get("training_set", {})
    post: Any = model.post_processor
    above = {level: 1 - getattr(post, f"{level}_sensitivity", 0.5) for level in ("image", "pixel")}
    prepared = "already resized and normalised: there is no pre-processor in the model"
    if model.pre_processor:
        prepared = "values from 0 to 1 (bytes divided by 255): resizing and normalisation are part of the model"
    return {
        "model": type(model).__name__,
        "arguments": json.dumps(dict(model.hparams), default=str),
        **{f"version_{package}": version for package, version in versions(MADE_WITH).items()},
        "input": f"float32, shape (batch, 3, height, width), channels in the order red, green, blue, {prepared}",
        "output_pred_score": "float32, shape (batch): anomaly score from 0 to 1",
        "output_pred_label": f"bool, shape (batch): whether the score is above {above['image']:g}: anomalous",
        "output_anomaly_map": "float32, shape (batch, 1, height, width) after resizing: anomaly of each pixel, 0 to 1",
        "output_pred_mask": f"bool, like anomaly_map: whether it is above {above['pixel']:g}: anomalous",
        "raw_thresholds": json.dumps(raw_thresholds(post)),
        "calibration": getattr(post, "calibration", None) or "",
        "thresholds_from": post.describe() if hasattr(post, "describe") else ANOMALIB_THRESHOLDS,
        "training_images": str(training.get("images") or "unknown"),
        "training_sha256_of_names_and_sizes": str(training.get("sha256") or "unknown"),
        "precision": "float32; a model of OpenVINO asks for it by itself, an ONNX file that OpenVINO reads is computed "
        'in bfloat16 where the processor has it, unless compiled with {"INFERENCE_PRECISION_HINT": "f32"}',
    }


def score_range(post_processor: Any, level: str) -> tuple[float, ...]:  # noqa: ANN401
    """Return least and greatest of raw scores (``image``) or maps (``pixel``), and their threshold."""
    return tuple(float(getattr(post_processor, f"{level}_{name}")) for name in ("min", "max", "threshold"))


def normalisation(post_processor: Any, level: str) -> tuple[float, float]:  # noqa: ANN401
    """Return slope and offset of anomalib's normalisation, which maps the threshold to 0.5."""
    least, greatest, threshold = score_range(post_processor, level)
    slope = 1 / (greatest - least)
    return slope, 0.5 - slope * threshold


class Judgement(nn.Module):
    """What anomalib's post-processor does, from thresholds that stay to be found, and changed, in an exported graph.

    Args:
        post_processor: The post-processor, with thresholds.
    """

    def __init__(self, post_processor: PostProcessor) -> None:
        super().__init__()
        self.limits: dict[str, float] = {}
        for level, shapes in SHAPES.items():
            for name, value, shape in zip(TERMS, normalisation(post_processor, level), shapes, strict=True):
                self.register_buffer(f"{level}_{name}", torch.full(shape, value))
            self.limits[level] = float(getattr(post_processor, f"normalized_{level}_threshold"))

    @staticmethod
    def suits(post_processor: object) -> bool:
        """Say whether a post-processor is one of anomalib's that normalises, and has thresholds and a range."""
        if not isinstance(post_processor, PostProcessor):
            return False
        for level in SHAPES:
            least, greatest, threshold = score_range(post_processor, level)
            # Comparisons with what is not a number are false.
            if not (greatest > least and abs(threshold) < math.inf):
                return False
        return bool(post_processor.enable_normalization and post_processor.enable_thresholding)

    def forward(self, raw: InferenceBatch) -> InferenceBatch:
        """Normalise scores and maps, and compare them with the thresholds; see anomalib's ``PostProcessor.forward``."""
        score, anomaly_map = (
            (
                cast("torch.Tensor", values) * self.get_buffer(f"{level}_slope") + self.get_buffer(f"{level}_offset")
            ).clamp(0, 1)
            for level, values in zip(SHAPES, (raw.pred_score, raw.anomaly_map), strict=True)
        )
        return InferenceBatch(score, score > self.limits["image"], anomaly_map, anomaly_map > self.limits["pixel"])


class Exports(LightningModule):
    """An anomalib model whose exports replace earlier ones when they are complete, and tell what they are.

    To be inherited from before anomalib's ``AnomalibModule``, whose methods do the work.

    Attributes:
        description: What :func:`describe` returned at the last export to PyTorch, which pickles it with the model.
    """

    description: dict[str, str]
    model: Any
    pre_processor: Any
    post_processor: Any
    judgement: Judgement | None

    def forward(self, batch: torch.Tensor, *args, **kwargs) -> InferenceBatch:
        """Judge images, in exports as here; see :meth:`anomalib.models.components.AnomalibModule.forward`.

        What cannot be judged is defective, whatever the post-processor: see :func:`.fail_safe`.
        """
        del args, kwargs
        with nullcontext() if torch.compiler.is_compiling() else full_precision(batch.device):
            raw = self.model(self.pre_processor(batch) if self.pre_processor else batch)
        judge = (torch.compiler.is_compiling() and getattr(self, "judgement", None)) or self.post_processor
        return call_defective(raw.pred_score >= 1, judge(raw) if judge else raw)

    def to_torch(self, export_root: Path | str, *args, **kwargs) -> Path:
        """Export to PyTorch; see :meth:`anomalib.models.components.base.ExportMixin.to_torch`."""
        self.description = describe(self)
        export = cast("Any", super()).to_torch
        return write_files(lambda folder: export(folder, *args, **kwargs), Path(export_root))

    def to_onnx(self, export_root: Path | str, *args, **kwargs) -> Path:  # type: ignore[override]
        """Export to ONNX; see :meth:`anomalib.models.components.base.ExportMixin.to_onnx`.

        It is one file, of operator set 18, unless other arguments for torch's exporter say otherwise or there are more
        than :data:`ONE_FILE_LIMIT` bytes. Its ``metadata_props`` are those of :func:`describe`.
        """
        size = sum(tensor.nbytes for tensor in self.state_dict().values())
        defaults = {"opset_version": OPSET, "external_data": size > ONE_FILE_LIMIT, "verbose": False}
        export = cast("Any", super()).to_onnx

        def write(folder: Path) -> Path:
            file = export(folder, *args, **{**defaults, **kwargs})
            describe_onnx(file, describe(self))
            return file

        suits = Judgement.suits(self.post_processor)
        self.judgement = Judgement(self.post_processor).to(self.device) if suits else None
        try:
            return write_files(write, Path(export_root))
        finally:
            # It is of this export; checkpoints have the post-processor.
            self.judgement = None

    def to_openvino(self, export_root: Path | str, *args, **kwargs) -> Path:
        """Export to OpenVINO; see :meth:`anomalib.models.components.base.ExportMixin.to_openvino`.

        The ``rt_info`` of the model has :func:`describe` under :data:`.openvino_ir.SECTION`. With
        ``CompressionType.FP16`` the constants are halved (see :func:`.finish_openvino`), with ``INT8_PTQ`` the backbone
        computes in integers (see :func:`.quantise_backbone`).

        Raises:
            ValueError: If the compression is ``INT8_ACQ``, or ``INT8_PTQ`` for a model without a pretrained backbone or
                without a datamodule.
        """
        import openvino  # noqa: F401 - anomalib's own error does not name it

        compression = next((one for one in (*args, *kwargs.values()) if isinstance(one, CompressionType)), None)
        if compression == CompressionType.INT8_ACQ:
            msg = "compression_type=INT8_ACQ tunes the model on the labels of test images: use INT8_PTQ."
            raise ValueError(msg)
        if compression == CompressionType.INT8_PTQ and not hasattr(self.model, "backbone"):
            msg = "compression_type=INT8_PTQ is for the pretrained backbone of vae='feature', and image VAEs have none."
            raise ValueError(msg)

        export = cast("Any", super()).to_openvino

        def write(folder: Path) -> Path:
            file = export(folder, *args, **kwargs)
            finish_openvino(file, describe(self), halved=compression == CompressionType.FP16)
            if compression == CompressionType.FP16:
                logger.info("Constants take two bytes each now. Exemplars, a byte per latent, stay as they are.")
            if compression in {CompressionType.INT8, CompressionType.INT8_PTQ}:
                logger.warning("Scores of 8-bit weights are others: calibrate (`vae-attention calibrate`) the export.")
            return file

        return write_files(write, Path(export_root))

    @staticmethod
    def _post_training_quantization_ov(model: Any, datamodule: Any = None) -> Any:  # noqa: ANN401
        """Quantise as anomalib's method does, which this replaces, but for what and with which images."""
        if datamodule is None:
            msg = "compression_type=INT8_PTQ needs a datamodule (--data), whose good training images set the scales."
            raise ValueError(msg)
        datamodule.setup("fit")
        files = list(datamodule.train_data.samples.image_path)
        chosen = np.unique(np.linspace(0, len(files) - 1, CALIBRATION_IMAGES).round().astype(int))
        # From the files: a datamodule that a fit has used resizes its items as the model's pre-processor does.
        images = (np.asarray(read_image(files[index], as_tensor=True))[None] for index in chosen)
        return quantise_backbone(model, images)


def describe_onnx(file: Path, description: dict[str, str]) -> None:
    """Write metadata into an ONNX file, in place of those of the same names."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, **description})
    onnx.save(model, file)

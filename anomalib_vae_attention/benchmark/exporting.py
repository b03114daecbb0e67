"""Exports of a fitted model, for their size and latency."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from anomalib.models.components import AnomalibModule

from anomalib_vae_attention.anomalib_support.exports import OPSET
from anomalib_vae_attention.anomalib_support.openvino_ir import put_constants_left

from .models import BareBackbone

Model: TypeAlias = AnomalibModule | BareBackbone

logger = logging.getLogger(__name__)

ANY_BATCH = "any-batch"


def find_export(folder: Path, runtime: str, batch: int) -> Path:
    """Find the file in a cell's folder that a model was exported to, for ``onnx`` or ``openvino`` and a batch size.

    Raises:
        FileNotFoundError: If it was not or could not be exported.
    """
    ending = {"onnx": "onnx", "openvino": "xml"}[runtime]
    for name in (ANY_BATCH, f"batch-{batch}"):
        file = folder / name / "weights" / runtime / f"model.{ending}"
        if file.exists():
            return file
    msg = f"the model could not be exported to {runtime} for {batch} images at a time"
    raise FileNotFoundError(msg)


def _to_onnx(model: Model, folder: Path, size: tuple[int, int], batch: int | None = None) -> Path:
    """Export to ONNX, by anomalib's own method if it is a model of anomalib, for any or one number of images."""
    if not isinstance(model, BareBackbone):
        options: dict[str, Any] = {} if batch is None else {"dynamic_shapes": ({0: batch},)}
        return model.to_onnx(folder, input_size=size, opset_version=OPSET, **options)
    file = folder / "weights" / "onnx" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, *size),),
        str(file),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    return file


def _takes_any_batch(file: Path) -> bool:
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    return not graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


def export_onnx(model: Model, folder: Path, size: tuple[int, int], batches: Sequence[int]) -> list[Path]:
    """Export a fitted model to ONNX, pre- and post-processing included, for images of a height and width in pixels.

    Returns:
        One file for any number of images at a time. Where the exporter fixes the number, as with PatchCore, which goes
        through the cells of all images in chunks, one file for each of ``batches``.
    """
    file = _to_onnx(model, folder / ANY_BATCH, size)
    if _takes_any_batch(file):
        return [file]
    logger.info("The exported model takes a fixed number of images: exporting for each of %s.", batches)
    shutil.rmtree(folder / ANY_BATCH)
    return [_to_onnx(model, folder / f"batch-{batch}", size, batch) for batch in batches]


def export_openvino(onnx: Path) -> Path:
    """Convert an ONNX file in ``weights/onnx`` as our own export does, in the precision that it has.

    Returns:
        The ``.xml`` file in ``weights/openvino``, with its weights beside it.
    """
    import openvino

    file = onnx.parents[1] / "openvino" / "model.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    model = openvino.convert_model(onnx)
    put_constants_left(model)
    openvino.save_model(model, file, compress_to_fp16=False)
    return file


def folder_mib(folder: Path) -> float:
    """Add up the sizes of the files in a folder, in MiB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20

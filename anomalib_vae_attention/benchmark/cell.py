"""One cell, in a process of its own: ``python -m anomalib_vae_attention.benchmark.cell FILE``.

FILE is ``cell.json``, the cell. Left beside it: the result when all is done, ``examples.npz``, and, if the cell is to
be kept, ``model.ckpt`` and its exports.
"""

import logging
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning import seed_everything

from anomalib_vae_attention.common.atomic_files import read_json, replacing, write_json
from anomalib_vae_attention.common.mvtec_layout import TEST, list_images
from anomalib_vae_attention.explain.scores import score

from .data import category_datamodule, read_image
from .examples import take_examples
from .exporting import ANY_BATCH, export_onnx, export_openvino, folder_bytes
from .jobs import DONE, RESULT, SKIPPED
from .models import BareBackbone, build_model, require_memory
from .plan import BATCHES, VARIANTS, Cell, read_cell, read_model

logger = logging.getLogger(__name__)


def peak_mib() -> float:
    """Return the most memory that this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _fit_and_score(cell: Cell, model: AnomalibModule, folder: Path) -> dict[str, Any]:
    datamodule = category_datamodule(Path(cell.folder))
    name, variant = read_model(cell.model)
    epochs = {"max_epochs": variant} if variant and name not in VARIANTS else {}
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine(
            default_root_dir=scratch,
            accelerator="cpu",
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            **epochs,
        )
        before = peak_mib()
        start = time.perf_counter()
        engine.fit(model=model, datamodule=datamodule)
        seconds = time.perf_counter() - start
        after = peak_mib()
        checkpoint = folder / "model.ckpt"
        engine.trainer.save_checkpoint(checkpoint)
        batches: Any = engine.predict(model=model, datamodule=datamodule)
    if batches[0].anomaly_map is not None:
        with replacing(folder / "examples.npz") as temporary:
            shown: dict[str, Any] = take_examples(batches, getattr(model.pre_processor, "transform", None))
            np.savez_compressed(temporary, **shown)
    return {
        "train_images": len(datamodule.train_data),
        "test_images": len(datamodule.test_data),
        **score(batches),
        "fit_seconds": seconds,
        "memory_before_mib": before,
        "memory_peak_mib": after,
        "checkpoint_bytes": checkpoint.stat().st_size,
    }


def _export(cell: Cell, model: AnomalibModule | BareBackbone, folder: Path) -> dict[str, Any]:
    """Export the model for images of the first one's size; what fails is a result like any other."""
    height, width = read_image(list_images(Path(cell.folder, TEST))[0]).shape[:2]
    results: dict[str, Any] = {"input_size": [height, width]}
    if not cell.export:
        return results
    try:
        onnx = export_onnx(model, folder, (height, width), BATCHES)
        results["onnx_bytes"] = folder_bytes(onnx[0].parent)
        openvino = [export_openvino(file) for file in onnx]
        results["openvino_bytes"] = folder_bytes(openvino[0].parent)
    except Exception as error:
        logger.exception("The export of %s failed.", cell)
        results["export_error"] = f"{type(error).__name__}: {error}"
    return results


def run(file: Path) -> None:
    """Fit, score and export what a ``cell.json`` says; write the result beside it last."""
    folder = file.parent
    cell = read_cell(read_json(file))
    try:
        require_memory(cell)
    except MemoryError as error:
        write_json(folder / RESULT, {"status": SKIPPED, "error": str(error)})
        return
    seed_everything(cell.seed)
    model = build_model(cell)
    fitted = {} if isinstance(model, BareBackbone) else _fit_and_score(cell, model, folder)
    exported = _export(cell, model, folder) if cell.keep or cell.export else {}
    if not cell.keep:
        (folder / "model.ckpt").unlink()
        for exports in (ANY_BATCH, *(f"batch-{batch}" for batch in BATCHES)):
            shutil.rmtree(folder / exports, ignore_errors=True)
    write_json(folder / RESULT, {"status": DONE, **fitted, **exported})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    run(Path(sys.argv[1]))

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
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning import seed_everything
from lightning.fabric.utilities import move_data_to_device

from anomalib_vae_attention.common.atomic_files import read_json, replacing, write_json
from anomalib_vae_attention.common.mvtec_layout import TEST, list_images
from anomalib_vae_attention.explain.scores import score

from .data import category_datamodule, read_image
from .exporting import export_onnx, export_openvino, folder_mib
from .jobs import DONE, RESULT, SKIPPED
from .models import BareBackbone, build_model, require_memory
from .plan import BATCHES, VARIANTS, Cell, read_cell, read_model

logger = logging.getLogger(__name__)

EXAMPLES = 5
"""Most test images of a category that maps are shown of."""


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
            accelerator=cell.accelerator,
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
        on_gpu = {"gpu_fit_mib": torch.cuda.max_memory_allocated() / 2**20} if cell.accelerator == "gpu" else {}
        checkpoint = folder / "model.ckpt"
        engine.trainer.save_checkpoint(checkpoint)
        batches: Any = move_data_to_device(engine.predict(model=model, datamodule=datamodule), torch.device("cpu"))
    if batches[0].anomaly_map is not None:
        with replacing(folder / "examples.npz") as temporary:
            np.savez_compressed(temporary, **take_examples(batches))
    return {
        "train_images": len(datamodule.train_data),
        "test_images": len(datamodule.test_data),
        **score(batches),
        "fit_seconds": seconds,
        "memory_before_mib": before,
        "memory_peak_mib": after,
        **on_gpu,
        "checkpoint_mib": checkpoint.stat().st_size / 2**20,
    }


def choose_examples(paths: Sequence[str], labels: Sequence[bool]) -> list[int]:
    """Choose at most :data:`EXAMPLES` of test images, the same for every model, and return their positions.

    One of each kind of defect, after which their folders are called, then more, and a good one last. Labels say whether
    there is a defect.
    """
    order = sorted(range(len(paths)), key=lambda index: paths[index])
    kinds: dict[str, list[int]] = {}
    for index in order:
        if labels[index]:
            kinds.setdefault(Path(paths[index]).parent.name, []).append(index)
    defective = [index for turn in zip_longest(*kinds.values()) for index in turn if index is not None]
    good = [index for index in order if not labels[index]]
    return [*defective[: EXAMPLES - 1], *good[:1]]


def take_examples(batches: Sequence[Any]) -> dict[str, Any]:
    """Take a few test images with their masks and anomaly maps.

    Args:
        batches: Predictions and truth of all test images, raw, with a map per image.

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

    shown = take("anomaly_map").numpy()
    maps = np.concatenate([batch.anomaly_map.float().flatten().numpy() for batch in batches])
    return {
        "path": np.array([paths[index] for index in chosen]),
        "image": np.stack([read_image(Path(paths[index]), shown.shape[1:]) for index in chosen]),
        "mask": take("gt_mask").numpy().astype(bool),
        "map": shown,
        "score": take("pred_score").numpy(),
        "range": np.quantile(maps, [0.5, 0.999]),
    }


def _export(cell: Cell, model: AnomalibModule | BareBackbone, folder: Path) -> dict[str, Any]:
    """Export the model for images of the first one's size; what fails is a result like any other."""
    height, width = read_image(list_images(Path(cell.folder, TEST))[0]).shape[:2]
    results: dict[str, Any] = {"input_size": [height, width]}
    if not cell.export:
        return results
    try:
        onnx = export_onnx(model, folder, (height, width), BATCHES)
        results["onnx_mib"] = folder_mib(onnx[0].parent)
        openvino = [export_openvino(file) for file in onnx]
        results["openvino_mib"] = folder_mib(openvino[0].parent)
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
        for exports in folder.glob("*/weights"):
            shutil.rmtree(exports.parent)
    write_json(folder / RESULT, {"status": DONE, **fitted, **exported})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    run(Path(sys.argv[1]))

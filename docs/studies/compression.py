"""Accuracy, size and latency after compression: ``python docs/studies/compression.py CATEGORY``.

Fits vae_attention to a category, exports it to OpenVINO through each of anomalib's compressions that need no defective
image, and scores and times all of them. Needs the extra ``compression`` (nncf). INT8_PTQ calibrates on a fifth of the
good training images; INT8_ACQ is left out, because anomalib chooses by the test images there.
"""

import argparse
import importlib.util
import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from anomalib.data import ImageBatch
from anomalib.data.utils import ValSplitMode
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from lightning import seed_everything
from numpy.typing import NDArray
from torchvision.transforms.v2 import Transform

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.benchmark.data import category_datamodule, read_image
from anomalib_vae_attention.benchmark.exporting import folder_bytes
from anomalib_vae_attention.benchmark.latency import measure as measure_latency
from anomalib_vae_attention.benchmark.runtimes import Run, open_openvino
from anomalib_vae_attention.common.machine import cores
from anomalib_vae_attention.common.mvtec_layout import TEST, list_images
from anomalib_vae_attention.explain.scores import score

if TYPE_CHECKING:
    from collections.abc import Callable

    from anomalib.pre_processing import PreProcessor

logger = logging.getLogger(__name__)

COMPRESSIONS = {
    "none (f32)": None,
    "FP16": CompressionType.FP16,
    "INT8 (weights)": CompressionType.INT8,
    "INT8_PTQ": CompressionType.INT8_PTQ,
}


def predict(run: Run, category: Path, transform: Transform) -> list[ImageBatch]:
    """Pass the test images of a category through an exported model, one at a time.

    Args:
        run: The model.
        category: Folder of the category.
        transform: The model's pre-processing, which brings the true masks to the maps' size.

    Returns:
        Predictions and truth of each image.
    """
    datamodule = category_datamodule(category)
    datamodule.eval_batch_size = 1
    datamodule.setup()
    batches = []
    for batch in datamodule.test_dataloader():
        found = run((batch.image * 255).round().byte().permute(0, 2, 3, 1).numpy())
        batch.image, batch.gt_mask = transform(batch.image, batch.gt_mask)
        predictions = {name: torch.from_numpy(found[name].copy()) for name in ("pred_score", "anomaly_map")}
        batches.append(batch.update(**predictions))
    return batches


def _run_one(run: Run, images: list[NDArray[np.uint8]], number: int) -> object:
    return run(images[number % len(images)])


def measure(category: Path, folder: Path, reference: Literal["exemplars", "gaussian"], rounds: int) -> pd.DataFrame:
    """Fit, compress, score and time.

    Args:
        category: Folder of a category in MVTec AD's layout, with images of one size.
        folder: Where to put checkpoints and exports.
        reference: The normal reference of the model.
        rounds: Turns of each model in which latencies are measured.

    Returns:
        A row for each of :data:`COMPRESSIONS`: size, accuracy on the test images and latency at batch 1, or ``error``
        where OpenVINO cannot run what it compressed.
    """
    seed_everything(0)
    # Without a post-processor, which would clamp scores to [0, 1] and make ties.
    model = VaeAttention(reference=reference, post_processor=False, evaluator=False, visualizer=False)
    Engine(default_root_dir=folder).fit(model=model, datamodule=category_datamodule(category))
    images = [read_image(file)[None] for file in list_images(category / TEST)]
    shape = images[0].shape[:3]
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[int], object]] = {}
    for name, compression in COMPRESSIONS.items():
        calibration = category_datamodule(category)
        calibration.val_split_mode, calibration.val_split_ratio = ValSplitMode.FROM_TRAIN, 0.2
        calibration.eval_batch_size = 1
        file = model.to_openvino(
            folder / name, input_size=shape[1:], compression_type=compression, datamodule=calibration
        )
        rows[name] = {"mib": folder_bytes(file.parent) / 2**20}
        try:
            run = open_openvino(file, shape, cores())
        except RuntimeError as error:
            logger.warning("%s cannot be run by OpenVINO: %s", name, error)
            rows[name]["error"] = str(error).strip().splitlines()[-1]
            continue
        rows[name] |= score(predict(run, category, cast("PreProcessor", model.pre_processor).transform))
        logger.info("%s: %s", name, rows[name])
        calls[name] = partial(_run_one, run, images)
    for name, latency in measure_latency(calls, rounds, budget=60).items():
        rows[name] |= {key: latency.get(key) for key in ("median_ms", "q25_ms", "q75_ms")}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["ratio"] = table["median_ms"] / table["median_ms"].iloc[0]
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path, help="folder of a category in MVTec AD's layout")
    parser.add_argument("--reference", default="exemplars", choices=("exemplars", "gaussian"))
    parser.add_argument("--rounds", type=int, default=30, help="turns of each model in which it is timed (30)")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parsed = parser.parse_args()
    if importlib.util.find_spec("nncf") is None:
        parser.error("compression needs nncf: pip install '.[compression]'")
    with tempfile.TemporaryDirectory() as folder:
        table = measure(parsed.category.resolve(), Path(folder), parsed.reference, parsed.rounds)
    print(table.to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    main()

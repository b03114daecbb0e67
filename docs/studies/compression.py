"""Accuracy, verdicts, size and latency after compression: ``python docs/studies/compression.py CATEGORY``.

Fits vae_attention to four fifths of a category's good training images, with thresholds for a false-positive rate of 5 %
from the rest. Exports it to OpenVINO through anomalib's compressions, and to ONNX with and without a quantised
backbone, and scores and times all of them. Where the backbone computes in integers, the thresholds are calibrated anew
on the images left out. Needs the extra ``compression`` (nncf).
"""

import argparse
import importlib
import importlib.util
import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import pandas as pd
import torch
from anomalib.data import Folder, ImageBatch
from anomalib.data.utils import ValSplitMode
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from lightning import seed_everything
from torchvision.transforms.v2 import Transform

from anomalib_vae_attention import NormalQuantile, VaeAttention
from anomalib_vae_attention.arguments import ReferenceName
from anomalib_vae_attention.benchmark.data import category_datamodule, read_image
from anomalib_vae_attention.benchmark.exporting import folder_mib
from anomalib_vae_attention.benchmark.latency import in_batches
from anomalib_vae_attention.benchmark.latency import measure as measure_latency
from anomalib_vae_attention.benchmark.runtimes import Run, open_onnx, open_openvino
from anomalib_vae_attention.calibrate.command import calibrate_export
from anomalib_vae_attention.common.machine import cores
from anomalib_vae_attention.common.mvtec_layout import TEST, list_images
from anomalib_vae_attention.explain.scores import score

if TYPE_CHECKING:
    from collections.abc import Callable

    from anomalib.pre_processing import PreProcessor

logger = logging.getLogger(__name__)

COMPRESSIONS = {
    "f32": None,
    "FP16": CompressionType.FP16,
    "INT8 (weights)": CompressionType.INT8,
    "INT8_PTQ": CompressionType.INT8_PTQ,
}
RATE = 0.05
"""False-positive rate of the thresholds."""
NAMES = ("pred_score", "pred_label", "anomaly_map")
KINDS = {"good": False, "defective": True}


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
        predictions = {name: torch.from_numpy(found[name].copy()) for name in NAMES}
        batches.append(batch.update(**predictions))
    return batches


def export(
    model: VaeAttention, datamodule: Folder, good: Path, folder: Path, size: tuple[int, ...] | None
) -> dict[str, Path]:
    """Export a model in every way.

    Args:
        model: The model.
        datamodule: Its training images, which set the scales of integers.
        good: Folder of good images, which set the thresholds where the backbone computes in integers.
        folder: Where to put the exports.
        size: Height and width of the images, or ``None`` where they differ.

    Returns:
        The file of each way, by runtime and compression.
    """
    files: dict[str, Path] = {}
    for name, compression in COMPRESSIONS.items():
        options: dict[str, Any] = {"input_size": size, "compression_type": compression, "datamodule": datamodule}
        files[f"OpenVINO, {name}"] = model.to_openvino(folder / name, **options)
    files["ONNX Runtime, f32"] = model.to_onnx(folder / "onnx", input_size=size)
    integers = folder / "onnx_int8" / "model.onnx"
    integers.parent.mkdir()
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    importlib.import_module("int8_onnx").main(files["ONNX Runtime, f32"], good, integers)
    files["ONNX Runtime, INT8_PTQ"] = integers
    for file in (file for name, file in files.items() if name.endswith("PTQ")):
        calibrate_export(file, good, NormalQuantile(RATE), file)
    return files


def measure(category: Path, folder: Path, reference: ReferenceName, rounds: int) -> pd.DataFrame:
    """Fit, compress, score and time.

    Args:
        category: Folder of a category in MVTec AD's layout, with test images of one size.
        folder: Where to put checkpoints and exports.
        reference: The normal reference of the model.
        rounds: Turns of each model in which latencies are measured.

    Returns:
        A row for each of the ways to export: size, accuracy on the test images, share of the good and of the defective
        ones that are called defective, and latency at batch 1.
    """
    seed_everything(0)
    datamodule = category_datamodule(category)
    datamodule.val_split_mode, datamodule.val_split_ratio = ValSplitMode.FROM_TRAIN, 0.2
    thresholds = NormalQuantile(RATE, held_out=0)
    model = VaeAttention(reference=reference, post_processor=thresholds, evaluator=False, visualizer=False)
    Engine(default_root_dir=folder).fit(model=model, datamodule=datamodule)
    good = folder / "good"
    good.mkdir()
    for file in map(Path, datamodule.val_data.samples.image_path):
        (good / file.name).symlink_to(file.resolve())
    images = [read_image(file) for file in list_images(category / TEST)]
    shape = (1, *images[0].shape[:2])
    sizes = {read_image(file).shape[:2] for part in ("train", TEST) for file in list_images(category / part)}
    size = shape[1:] if len(sizes) == 1 else None
    transform = cast("PreProcessor", model.pre_processor).transform
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[int], object]] = {}
    for name, file in export(model.eval(), datamodule, good, folder, size).items():
        run = open_onnx(file, cores()) if file.suffix == ".onnx" else open_openvino(file, shape, cores())
        found = predict(run, category, transform)
        flagged = {bad: [bool(one.pred_label) for one in found if bool(one.gt_label) is bad] for bad in (False, True)}
        shares = {f"{kind}_flagged": sum(flagged[bad]) / len(flagged[bad]) for kind, bad in KINDS.items()}
        rows[name] = {"mib": folder_mib(file.parent), **score(found), **shares}
        logger.info("%s: %s", name, rows[name])
        calls[name] = in_batches(run, images, 1)
    for name, latency in measure_latency(calls, rounds, budget=60).items():
        rows[name] |= {key: latency.get(key) for key in ("median_ms", "q25_ms", "q75_ms")}
    table = pd.DataFrame.from_dict(rows, orient="index")
    firsts = {runtime: table["median_ms"][f"{runtime}, f32"] for runtime in ("OpenVINO", "ONNX Runtime")}
    table["ratio"] = [row.median_ms / firsts[str(name).partition(",")[0]] for name, row in table.iterrows()]
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path, help="folder of a category in MVTec AD's layout")
    parser.add_argument("--reference", default="exemplars", choices=get_args(ReferenceName))
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

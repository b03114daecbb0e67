"""Agreement of the runtimes: ``python docs/studies/agreement.py CATEGORY``.

Fits a model to a category, exports it as anomalib does, with no input size given and, where all test images are of one
size, with that, passes every test image through anomalib's OpenVINOInferencer and ONNX Runtime, and prints how far
scores, maps, labels and masks are from those of anomalib's TorchInferencer.
"""

import argparse
import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from lightning import seed_everything
from sklearn.metrics import roc_auc_score

from anomalib_vae_attention import NormalQuantile, VaeAttention
from anomalib_vae_attention.arguments import ReferenceName
from anomalib_vae_attention.benchmark.data import category_datamodule, read_image
from anomalib_vae_attention.benchmark.latency import in_batches
from anomalib_vae_attention.benchmark.latency import measure as measure_latency
from anomalib_vae_attention.benchmark.runtimes import open_onnx, open_openvino
from anomalib_vae_attention.common.machine import cores
from anomalib_vae_attention.common.mvtec_layout import TEST, TEST_GOOD, list_images

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Prediction = dict[str, "NDArray"]
NAMES = ("pred_score", "anomaly_map", "pred_label", "pred_mask")
TURNS, BUDGET = 40, 600.0
"""Turns of each model that is timed, and seconds that one may take."""


def onnx_predictor(file: Path) -> Callable[[Path], Prediction]:
    """Make a function that reads an image file and passes it through ONNX Runtime."""
    run = open_onnx(file, cores())
    return lambda image: run(read_image(image)[None])


def inferencer_predictor(inferencer: TorchInferencer | OpenVINOInferencer) -> Callable[[Path], Prediction]:
    """Make a function that passes an image file through one of anomalib's inferencers."""

    def predict(image: Path) -> Prediction:
        result = inferencer.predict(image)
        return {name: np.asarray(getattr(result, name)) for name in NAMES}

    return predict


def compare(expected: Iterable[Prediction], found: Iterable[Prediction], defective: Sequence[bool]) -> dict[str, float]:
    """Compare the predictions of two runtimes, image by image.

    Args:
        expected: Predictions of the one.
        found: Predictions of the other, of the same images.
        defective: Whether each image shows a defect.

    Returns:
        Greatest difference of scores and of maps, numbers of images, and of good ones, whose label differs, number of
        images whose mask does, the number of mask pixels that do, how far at most the map is from the threshold (.5, by
        anomalib's normalisation) there, and by how much the image AUROC is greater.
    """
    rows, margins, scores = [], [0.0], []
    for one, other in zip(expected, found, strict=True):
        flat = [{name: prediction[name].reshape(-1).astype(float) for name in NAMES} for prediction in (one, other)]
        scores.append([float(side["pred_score"][0]) for side in flat])
        rows.append({name: np.abs(flat[0][name] - flat[1][name]) for name in NAMES})
        margins.extend(np.abs(flat[0]["anomaly_map"] - 0.5)[rows[-1]["pred_mask"] > 0])
    masks = np.array([row["pred_mask"].sum() for row in rows])
    ours, theirs = (float(roc_auc_score(defective, side)) for side in zip(*scores, strict=True))
    return {
        "score_difference": float(max(row["pred_score"].max() for row in rows)),
        "map_difference": float(max(row["anomaly_map"].max() for row in rows)),
        "labels_differ": float(sum(row["pred_label"].any() for row in rows)),
        "good_labels_differ": float(
            sum(row["pred_label"].any() for row, bad in zip(rows, defective, strict=True) if not bad)
        ),
        "masks_differ": float((masks > 0).sum()),
        "mask_pixels_differ": float(masks.sum()),
        "distance_from_threshold": float(max(margins)),
        "image_AUROC_gain": theirs - ours,
    }


def time_precisions(
    files: Sequence[Path], hints: Sequence[str | None], images: Sequence["NDArray"], threads: int
) -> pd.DataFrame:
    """Time exports in OpenVINO with each hint of a precision, or none, in turns, one image at a time.

    Args:
        files: Exports. The first with the first hint is what the others are compared with.
        hints: The hints, or ``None`` for OpenVINO's default.
        images: Images ``(H, W, 3)`` of one size.
        threads: Threads of each model.

    Returns:
        A row for each export and hint: milliseconds of the processor per image, median and quartiles, and the median's
        ``ratio``. The times of other processes are not in them.
    """
    shape = (1, *images[0].shape[:2])
    calls = {
        f"{file.name}, {hint or 'no hint'}": in_batches(open_openvino(file, shape, threads, hint), images, 1)
        for file in files
        for hint in hints
    }
    table = pd.DataFrame.from_dict(measure_latency(calls, TURNS, BUDGET, time.process_time), orient="index").loc[
        list(calls)
    ]
    return table.assign(ratio=table["median_ms"] / table["median_ms"].iloc[0])


def measure(
    category: Path,
    folder: Path,
    rate: float | None = None,
    reference: ReferenceName = "exemplars",
    threads: int = 1,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fit, export, compare and time.

    Args:
        category: Folder of a category in MVTec AD's layout.
        folder: Where to put checkpoints and exports.
        rate: False-positive rate of ``normal_quantile``; anomalib's thresholds by default.
        reference: The normal reference of the model.
        threads: Threads of each model that is timed.

    Returns:
        A row for each runtime, precision and way of exporting, with the columns of :func:`compare`; and the times of
        the exports with an open input size, on the test images that are of the first one's size.
    """
    import openvino

    seed_everything(0)
    engine = Engine(default_root_dir=folder)
    post_processor = True if rate is None else NormalQuantile(rate)
    model = VaeAttention(reference=reference, visualizer=False, post_processor=post_processor)
    engine.fit(model=model, datamodule=category_datamodule(category))
    model = VaeAttention.load_from_checkpoint(str(engine.best_model_path)).eval()
    images = list_images(category / TEST)
    defective = [image.parent != category / TEST_GOOD for image in images]
    os.environ["TRUST_REMOTE_CODE"] = "1"  # anomalib's inferencer asks for it before it loads the file written here.
    torch_model = inferencer_predictor(TorchInferencer(model.to_torch(folder), device="cpu"))
    expected = [torch_model(image) for image in images]
    precisions = ["f32"]
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        precisions.append("bf16")
    rows, exports = {}, []
    sizes: list[tuple[int, int] | None] = [None, *{read_image(image).shape[:2] for image in images}]
    for given in sizes if len(sizes) == 2 else sizes[:1]:
        size = "open" if given is None else "x".join(map(str, given))
        onnx = model.to_onnx(folder / size, input_size=given)
        xml = model.to_openvino(folder / size, input_size=given)
        exports += [xml, onnx]
        predictors = {"ONNX Runtime": onnx_predictor(onnx)}
        for precision in precisions:
            config = {"INFERENCE_PRECISION_HINT": precision}
            inferencer = OpenVINOInferencer(xml, device="CPU", config=config)
            predictors[f"OpenVINO {precision}"] = inferencer_predictor(inferencer)
        for runtime, predict in predictors.items():
            rows[runtime, size] = compare(expected, (predict(image) for image in images), defective)
            logger.info("%s, input size %s: %s", runtime, size, rows[runtime, size])
    pixels = [read_image(image) for image in images]
    same = [one for one in pixels if one.shape == pixels[0].shape]
    times = time_precisions(exports[:2], [*precisions, None], same, threads)
    return pd.DataFrame.from_dict(rows, orient="index"), times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path, help="folder of a category in MVTec AD's layout")
    parser.add_argument("--false_positive_rate", type=float, help="of normal_quantile (anomalib's thresholds)")
    parser.add_argument("--reference", default="exemplars", choices=get_args(ReferenceName))
    parser.add_argument("--threads", type=int, default=1, help="threads of each model that is timed (1)")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parser.parse_args()
    category = arguments.category.resolve()
    # anomalib's OpenVINOInferencer leaves a folder openvino_cache where it is called.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        tables = measure(category, Path(folder), arguments.false_positive_rate, arguments.reference, arguments.threads)
    for table in tables:
        print(table.to_string())


if __name__ == "__main__":
    main()

"""Accuracy over several seeds: ``python -m anomalib_vae_attention.benchmark.accuracy FOLDER... --seeds 0 1 2``.

Each folder is a category in MVTec AD's layout (``train/good``, ``test/*``, ``ground_truth/*``; any image format). Every
run is a fresh fit with the default arguments, evaluated by anomalib's metrics on all test images, and added to a CSV
file; runs that are in the file already are not repeated. A table of medians closes the run.
"""

import argparse
import logging
import resource
import tempfile
import time
from pathlib import Path
from typing import Literal

import pandas as pd
from anomalib.data import Folder
from anomalib.data.utils import ValSplitMode
from anomalib.engine import Engine
from anomalib.metrics import AUPRO, AUROC, Evaluator
from lightning import seed_everything

from anomalib_vae_attention import VaeAttention

logger = logging.getLogger(__name__)

METRICS = ["image_AUROC", "pixel_AUROC", "pixel_AUPRO"]


def category_datamodule(category: Path) -> Folder:
    """Read a category in MVTec AD's layout, images of any format, validated on the test images if at all.

    Args:
        category: Folder with ``train/good``, ``test/good``, ``test/*`` and ``ground_truth/*``.

    Returns:
        anomalib's datamodule for it.

    Raises:
        FileNotFoundError: If one of the folders is missing, naming it.
    """
    for part in ("train/good", "test/good", "ground_truth"):
        if not (category / part).is_dir():
            msg = f"{category} is not a category in MVTec AD's layout: it has no folder {part}."
            raise FileNotFoundError(msg)
    defects = sorted(folder.name for folder in (category / "test").iterdir() if folder.name != "good")
    return Folder(
        name=category.name,
        root=category,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{defect}" for defect in defects],
        mask_dir=[f"ground_truth/{defect}" for defect in defects],
        # The default would take half of the test images away.
        val_split_mode=ValSplitMode.SAME_AS_TEST,
        num_workers=0,
    )


def measure(category: Path, seed: int, reference: Literal["exemplars", "gaussian"]) -> dict[str, float | str | int]:
    """Fit and test once.

    Args:
        category: Folder of the category.
        seed: Seed of everything random.
        reference: Normal reference of the model.

    Returns:
        A row: names, the metrics in [0, 1], seconds of the fit, and peak memory of this process in MiB.
    """
    seed_everything(seed)
    evaluator = Evaluator(
        test_metrics=[
            AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
            AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_"),
            AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_"),
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(default_root_dir=folder, limit_val_batches=0)
        model = VaeAttention(reference=reference, evaluator=evaluator, visualizer=False)
        datamodule = category_datamodule(category)
        start = time.perf_counter()
        engine.fit(model=model, datamodule=datamodule)
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        results = engine.test(model=model, datamodule=datamodule)[0]
    scores = {name: float(results[name]) for name in METRICS}
    return {
        "category": category.name,
        "reference": reference,
        "seed": seed,
        **scores,
        "fit_seconds": seconds,
        "peak_mib": memory,
    }


def main() -> None:
    """Run what is missing, then print the medians over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", nargs="+", type=Path, help="folders of categories")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--references", nargs="+", default=["exemplars"], choices=["exemplars", "gaussian"])
    parser.add_argument("--output", type=Path, default=Path("results/accuracy.csv"), help="CSV file of all runs")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(arguments.output).to_dict("records") if arguments.output.exists() else []
    for category in arguments.categories:
        for reference in arguments.references:
            for seed in arguments.seeds:
                key = (category.name, reference, seed)
                if key in {(row["category"], row["reference"], row["seed"]) for row in rows}:
                    continue
                rows.append(measure(category, seed, reference))
                pd.DataFrame(rows).to_csv(arguments.output, index=False)
                logger.info("%s", rows[-1])
    table = pd.DataFrame(rows).drop(columns="seed").groupby(["category", "reference"]).median()
    print(table.round(4).to_string())
    print(f"All runs: {arguments.output.resolve()}")


if __name__ == "__main__":
    main()

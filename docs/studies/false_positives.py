"""False-positive rates: ``python docs/studies/false_positives.py --category FOLDER``.

How many normal images, and how many of their pixels, do thresholds of :class:`NormalQuantile` call anomalous? In every
split a random share of the training images is new to the model, another is held out for the thresholds, and the rest
is learnt; the category's own good test images are counted apart.
"""

import argparse
import logging
import random
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from anomalib.data import Folder
from anomalib.data.utils import ValSplitMode
from anomalib.engine import Engine
from lightning import seed_everything
from scipy.stats import beta

from anomalib_vae_attention import NormalQuantile, VaeAttention
from anomalib_vae_attention.common.atomic_files import write_json, write_table
from anomalib_vae_attention.common.machine import describe_machine
from anomalib_vae_attention.thresholds.conformal import image_threshold, images_needed, pixel_levels, pixel_threshold

logger = logging.getLogger(__name__)

GOOD = ("new", "test")
"""Normal images that the model has not seen: training images set apart, and the category's good test images."""


class Calibrated(NamedTuple):
    """Scores of one split.

    Attributes:
        held_out: Image scores of the held-out images, of shape ``(n,)``.
        levels: Their pixels' levels (see :func:`.conformal.pixel_levels`).
        scores: For each part of :data:`GOOD`, image scores of its images.
        maps: For each part of :data:`GOOD`, the pixels' levels of each of its images.
        files: For each part of :data:`GOOD`, the images' names.
    """

    held_out: torch.Tensor
    levels: torch.Tensor
    scores: dict[str, torch.Tensor]
    maps: dict[str, list[torch.Tensor]]
    files: dict[str, list[str]]


class Recorded(NormalQuantile):
    """Keeps what thresholds are set from, so that one fit serves every rate."""

    def compute(self) -> None:
        """Set the thresholds, and keep the scores and the pixels' levels."""
        self.held_out_scores, self.held_out_levels = torch.tensor(self._seen.scores), self._seen.levels
        super().compute()


def fit_split(files: dict[str, list[Path]], held_out: float, seed: int) -> Calibrated:
    """Fit the default model to a split and score the normal images that are new to it.

    Args:
        files: Images to learn from (``"train"``), and those of each part of :data:`GOOD`.
        held_out: Share of the images to learn from that thresholds are taken from.
        seed: Seed of the fit.

    Returns:
        All scores.
    """
    seed_everything(seed)
    post_processor = Recorded(held_out=held_out)
    model = VaeAttention(post_processor=post_processor, visualizer=False)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for part, members in files.items():
            (root / part).mkdir()
            for file in members:
                (root / part / file.name).symlink_to(file.resolve())
        scored = {}
        for part in GOOD:
            datamodule = Folder(
                name="split",
                root=root,
                normal_dir="train",
                normal_test_dir=part,
                val_split_mode=ValSplitMode.SAME_AS_TEST,
                num_workers=0,
            )
            engine = Engine(
                default_root_dir=root / "results",
                accelerator="cpu",
                # anomalib cannot do without a validation set.
                limit_val_batches=0,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            if part == GOOD[0]:
                engine.fit(model=model, datamodule=datamodule)
            scored[part] = _score(model.eval(), datamodule)
    return Calibrated(
        post_processor.held_out_scores,
        post_processor.held_out_levels,
        {part: scores for part, (scores, _) in scored.items()},
        {part: maps for part, (_, maps) in scored.items()},
        {part: sorted(file.name for file in files[part]) for part in GOOD},
    )


@torch.inference_mode()
def _score(model: VaeAttention, datamodule: Folder) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the raw scores of the test images in the order of their names, and the levels of each one's pixels."""
    datamodule.setup()
    datamodule.test_data.samples = datamodule.test_data.samples.sort_values("image_path").reset_index(drop=True)
    pre_processor: Any = model.pre_processor
    # As the engine does: resized before batching.
    datamodule.test_data.augmentations = pre_processor.transform.transforms[0]
    predictions = [model.model(pre_processor(batch.image)) for batch in datamodule.test_dataloader()]
    levels = [pixel_levels(one) for prediction in predictions for one in prediction.anomaly_map]
    return torch.cat([prediction.pred_score for prediction in predictions]), levels


def exceeding(levels: torch.Tensor, threshold: float) -> float:
    """Return the share of an image's pixels above a threshold that is a level."""
    return float(levels[round(threshold * (len(levels) - 1)) + 1 :].sum() / levels.sum())


def interval(share: float, count: int) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of 95 % for a share of ``count`` images.

    For a mean of shares, as of pixels, it is too wide rather than too narrow: among quantities in [0, 1] of one mean
    none varies more than one that is either 0 or 1.
    """
    hits = share * count
    low = float(beta.ppf(0.025, hits, count - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def tabulate(splits: list[Calibrated], rates: list[float]) -> pd.DataFrame:
    """Tabulate achieved against requested rates.

    Args:
        splits: Scores of each split.
        rates: Requested rates.

    Returns:
        A row per level (image, pixel), part of :data:`GOOD` and rate: number of images that
        the threshold is from, whether a rate takes no more than that, achieved rate on average over splits, its least
        and greatest, number of different images, and an interval of 95 % for as many.
    """
    rows = []
    for part in GOOD:
        different = len({name for split in splits for name in split.files[part]})
        for rate in rates:
            achieved: dict[str, list[float]] = {"image": [], "pixel": []}
            for split in splits:
                above = split.scores[part] > image_threshold(split.held_out, rate)
                achieved["image"].append(float(above.float().mean()))
                threshold = pixel_threshold(split.levels, len(split.held_out), rate)
                shares = [exceeding(levels, threshold) for levels in split.maps[part]]
                achieved["pixel"].append(sum(shares) / len(shares))
            count = len(splits[0].held_out)
            for level, found in achieved.items():
                mean = sum(found) / len(found)
                low, high = interval(mean, different)
                rows.append({
                    "level": level,
                    "threshold from": f"{count} held out",
                    "tested on": f"{different} {part}",
                    "requested": rate,
                    "enough images": count >= images_needed(rate),
                    "achieved": mean,
                    "low": low,
                    "high": high,
                    "least": min(found),
                    "greatest": max(found),
                })
    return pd.DataFrame(rows).sort_values(["level", "threshold from", "tested on", "requested"])


def main(arguments: list[str] | None = None) -> int:
    """Fit the splits, print the table, and write ``rates.csv`` and ``machine.json``.

    Args:
        arguments: Those of the command line by default.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", type=Path, required=True, help="folder of a category in MVTec AD's layout")
    parser.add_argument("--splits", type=int, default=10, help="number of random splits (10)")
    parser.add_argument("--new", type=float, default=0.3, help="share of the training images new to the model (0.3)")
    parser.add_argument("--held_out", type=float, default=0.2, help="share held out of the rest (0.2)")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.01, 0.05, 0.1], help="requested rates")
    parser.add_argument("--images", type=int, help="use a random sample of so many training images")
    parser.add_argument("--output", type=Path, default=Path("results/false_positives"), help="folder")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    train, test = (sorted((parsed.category / part / "good").glob("*")) for part in ("train", "test"))
    if len(train) < 4 or not test:
        parser.error(f"{parsed.category} must have four images or more in train/good, and one or more in test/good.")
    splits = []
    for seed in range(parsed.splits):
        shuffled = random.Random(seed).sample(train, min(len(train), parsed.images or len(train)))  # noqa: S311
        count = max(1, round(parsed.new * len(shuffled)))
        files = {"new": shuffled[:count], "train": shuffled[count:], "test": test}
        splits.append(fit_split(files, parsed.held_out, seed))
        print(f"Split {seed + 1} of {parsed.splits} is done.", flush=True)
    table = tabulate(splits, parsed.rates)
    write_table(parsed.output / f"{parsed.category.name}.csv", table)
    write_json(parsed.output / "machine.json", describe_machine())
    print(table.round(4).to_string(index=False))
    print(f"Written to {parsed.output.resolve()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

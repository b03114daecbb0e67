"""The command ``vae-attention train``: learn from a folder of good parts, and say what came of it."""

import argparse
import logging
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from anomalib_vae_attention.common.argument_checks import command_parser
from anomalib_vae_attention.common.atomic_files import explaining
from anomalib_vae_attention.common.folders import DEFECTIVE, GOOD, first_free, kind_of
from anomalib_vae_attention.common.models import TABLE
from anomalib_vae_attention.predict.inputs import Input
from anomalib_vae_attention.predict.models import load_model
from anomalib_vae_attention.predict.results import ERROR, OVERLAYS, REPORT, Slips
from anomalib_vae_attention.predict.run import predict
from anomalib_vae_attention.thresholds.normal_quantile import NormalQuantile

from .fit import LOWEST_RATE, fit
from .parts import Parts, describe, find_parts

TESTED = "test"
"""Folder, in that of the training, of the verdicts on images that were not learnt."""
UNLIKELY = 0.01
"""Probability of that many false alarms or more below which they are called more than chance."""
GENERIC = {"train", "test", "images", "data"}
EPILOG = """
FOLDER holds good images, or folders called good, defective and masks (or train/good, test and ground_truth, as in
MVTec AD). A fifth of the good images is not learnt: thresholds are taken from their scores. Defective images are
never learnt; the model is tested on them.

examples:
  vae-attention train good_parts
  vae-attention train line3 --good ok --defective "nok" --masks masks --false_positive_rate 0.02
"""


def choose_folder(given: Path | None, source: Path) -> Path:
    """Make the folder to write to: a new one, named after the source.

    Raises:
        OSError: If it cannot be made.
        ValueError: If it has files in it.
    """
    names = [part for part in source.resolve().parts if part.lower() not in GENERIC and kind_of(part) is None]
    folder = given or first_free(Path("results") / (names[-1] if len(names) > 1 else "parts"))
    # Now, not when the training is over, or when another training has chosen it.
    with explaining(f"--output {folder} cannot be written", "name a folder that can"):
        folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        msg = f"--output {folder}: the folder is not empty. Choose a new one."
        raise ValueError(msg)
    return folder


def to_test(parts: Parts, held_out: Sequence[Path]) -> list[Input]:
    """Return the images that the model has not learnt, named by what they are and where they lie."""
    tested = {GOOD: parts.good_test or list(held_out), DEFECTIVE: parts.defective}
    inputs = []
    for kind, files in tested.items():
        above = os.path.commonpath([file.parent for file in files]) if files else ""
        for file in files:
            name = f"{kind}/{file.relative_to(above).as_posix()}"
            inputs.append(Input(file.absolute(), name, kind == DEFECTIVE, parts.pairs.masks.get(file)))
    return inputs


def measure(rows: Sequence[dict[str, Any]], rate: float) -> str:
    """Say how well the scores tell good images from defective ones, as far as there are both.

    ``rate`` is the highest expected rate of false alarms; more than chance explains is told.
    """
    judged = [row for row in rows if row["label"] != ERROR]
    slips = Slips.of(Counter((row["truth"], row["label"]) for row in judged))
    if not slips.defective or not slips.good:
        return "image AUROC: undefined, for it takes good and defective images to test on"
    auroc = roc_auc_score([row["truth"] == DEFECTIVE for row in judged], [row["score"] for row in judged])
    text = f"image AUROC: {auroc:.4f} (1 is perfect)\n{slips}"
    if binomtest(slips.alarms, slips.good, rate, alternative="greater").pvalue < UNLIKELY:
        text += (
            "\nThat is more than chance: these good images are not like those learnt from. Learn from such images, "
            "too, or take the threshold from some: vae-attention calibrate MODEL GOOD_IMAGES --false_positive_rate RATE"
        )
    return text


def run(given: argparse.Namespace) -> None:
    """Train, test, and print what there is to know."""
    as_images_allow = given.false_positive_rate is None
    thresholds = NormalQuantile(LOWEST_RATE if as_images_allow else given.false_positive_rate)
    parts = find_parts(given.folder, given.good, given.defective, given.masks)
    folder = choose_folder(given.output, given.folder)
    print(describe(parts), flush=True)
    try:
        checkpoint, held_out = fit(parts.good, folder, thresholds, keepable=as_images_allow)
    except BaseException:
        # One that has files stays.
        with suppress(OSError):
            folder.rmdir()
        raise
    rate = max(thresholds.false_positive_rate, 1 / (len(held_out) + 1))
    note = (
        f"Learnt from {len(parts.good) - len(held_out)} good images. The threshold was taken from {len(held_out)} "
        f"others: of new good parts like these, at most {100 * rate:.1f} % on average are called defective."
    )
    if not parts.good_test:
        note += f"\nThe good images below are these {len(held_out)}."
    rows = predict(load_model(checkpoint), to_test(parts, held_out), folder / TESTED, f"Test of {folder.name}", note)
    print(f"\n{note}")
    if rate > LOWEST_RATE and as_images_allow:
        print("More good images keep a lower rate: 500 keep 1 %.")
    print(measure(rows, rate))
    tested = folder / TESTED
    print(f"model    {checkpoint}\ntable    {tested / TABLE}\npictures {tested / OVERLAYS}\nreport   {tested / REPORT}")
    print(f"next     vae-attention predict {shlex.quote(str(checkpoint))} NEW_IMAGES")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = command_parser(
        "train", "Learn what good parts look like: a model with thresholds, tested, with a report.", EPILOG
    )
    parser.add_argument("folder", type=Path, help="folder of images, or of folders of images")
    parser.add_argument("--output", type=Path, help="folder to write to, which must be new (results/NAME)")
    parser.add_argument("--good", type=Path, help="folder of good images (found by its name)")
    parser.add_argument("--defective", type=Path, help="folder of defective images (found by its name)")
    parser.add_argument("--masks", type=Path, help="folder of masks of the defective images (found by its name)")
    parser.add_argument(
        "--false_positive_rate",
        type=float,
        help="share of good parts that may be called defective (as low as the images can keep, 0.01 at best)",
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    run(given)

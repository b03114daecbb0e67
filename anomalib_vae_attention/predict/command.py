"""The command ``vae-attention predict``: from images to verdicts, pictures and a report."""

import argparse
import logging
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from anomalib_vae_attention.common.argument_checks import command_parser, require_whole
from anomalib_vae_attention.common.atomic_files import read_json
from anomalib_vae_attention.common.folders import DEFECTIVE, first_free
from anomalib_vae_attention.common.models import TABLE, find_model

from .inputs import find_inputs
from .models import load_model
from .results import ERROR, OVERLAYS, REPORT, RUN, Slips, fingerprint, same_run
from .run import BATCH_SIZE, predict

DEFAULT_OUTPUT = Path("predictions")
EXIT_DEFECT = 3
TOLD = 5
"""Errors that are told; the table has all."""
EPILOG = f"""
MODEL is a checkpoint (.ckpt), an export (.onnx, or .xml of OpenVINO), or the folder that a training or an export left
it in. IMAGES are files, folders with their subfolders, patterns in quotes, and lists: a path per line (.txt) or a
column `path` (.csv); for --engine ray a Parquet, too. An interrupted run goes on when the command is given again;
images that have changed since are predicted again, but not by --engine ray. The exit code is 0, 2 where something is
wrong with the arguments, and with --fail_on_defect {EXIT_DEFECT} where an image is defective or cannot be judged.

examples:
  vae-attention predict model.ckpt new_parts
  vae-attention predict weights/openvino/model.xml "line3/**/*.png" --output line3 --fail_on_defect
"""


def choose_folder(given: Path | None, model: Path, engine: str = "local") -> Path:
    """Return the folder to write to: the one that was named, or the first that is free or holds this model's run."""
    if given is not None:
        return given
    told = {"sha256": fingerprint(model), "engine": engine}

    def is_ours(folder: Path) -> bool:
        before = read_json(folder / RUN)
        return before is not None and same_run(before, told)

    return first_free(DEFAULT_OUTPUT, is_ours)


def summarise(counts: Counter[tuple[str, str]], errors: Iterable[str]) -> str:
    """Say in a few lines what came out, and how right that is where the truth is known.

    From the number of images of each truth and label, and why images could not be judged, of which the first
    :data:`TOLD` are told.
    """
    labels: Counter[str] = Counter()
    for (_, label), count in counts.items():
        labels[label] += count
    words = {ERROR: "that cannot be judged"}
    told = ", ".join(f"{count} {words.get(label, label)}" for label, count in sorted(labels.items()))
    lines = [f"{counts.total()} images: {told}"]
    slips = Slips.of(counts)
    if slips.defective or slips.good:
        lines.append(f"by the names of folders, {slips}")
    lines += [f"  {error}" for error in islice(errors, TOLD)]
    lines += [f"  and {labels[ERROR] - TOLD} more: see the table"] * (labels[ERROR] > TOLD)
    return "\n".join(lines)


def run(given: argparse.Namespace) -> Counter[tuple[str, str]]:
    """Predict with the engine that was chosen, say what came out and where it is, and return the counts."""
    require_whole("--batch_size", given.batch_size, 1)
    if given.engine == "ray":
        from .ray_engine import PARTS, predict_on_ray

        folder = choose_folder(given.output, find_model(given.model), given.engine)
        counts, errors = predict_on_ray(
            given.model,
            given.images,
            folder,
            address=given.address,
            actors=given.actors,
            device=given.device,
            batch_size=given.batch_size,
        )
        print(f"{summarise(counts, errors)}\ntable    {folder / PARTS}")
        return counts
    for name in ("address", "actors"):
        if getattr(given, name) is not None:
            msg = f"--{name} is an argument of --engine ray."
            raise ValueError(msg)
    inputs = find_inputs(given.images)
    model = load_model(given.model, given.device)
    folder = choose_folder(given.output, model.file)
    rows = predict(model, inputs, folder, "Predictions", f"Model {model.file}", given.batch_size)
    counts = Counter((row["truth"], row["label"]) for row in rows)
    print(summarise(counts, (row["error"] for row in rows if row["label"] == ERROR)))
    print(f"model    {model.file}\ntable    {folder / TABLE}\npictures {folder / OVERLAYS}\nreport   {folder / REPORT}")
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = command_parser(
        "predict", "Judge images: a table, a picture per image, and a report to open in a browser.", EPILOG
    )
    parser.add_argument("model", type=Path, help="checkpoint, export, or folder of one")
    parser.add_argument("images", nargs="+", help="files, folders, patterns, lists of files")
    parser.add_argument("--output", type=Path, help=f"folder ({DEFAULT_OUTPUT}, or {DEFAULT_OUTPUT}-2 and so on)")
    parser.add_argument(
        "--fail_on_defect", action="store_true", help=f"exit code {EXIT_DEFECT} if anything is defective"
    )
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE, help=f"most images at once ({BATCH_SIZE})")
    parser.add_argument("--device", help="of a checkpoint: cpu or cuda (cuda where there is one)")
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: all cores or machines, and a table only",
    )
    parser.add_argument("--address", help="of a Ray cluster, HOST:PORT (this machine)")
    parser.add_argument("--actors", type=int, help="processes of --engine ray (one per core, or GPU for a checkpoint)")
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    counts = run(given)
    return EXIT_DEFECT if given.fail_on_defect and any(label in {DEFECTIVE, ERROR} for _, label in counts) else 0

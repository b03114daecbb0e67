"""The command ``vae-attention predict``: from images to verdicts, pictures and a report."""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib_vae_attention.common.argument_checks import require_whole
from anomalib_vae_attention.common.atomic_files import read_json

from .inputs import find_inputs
from .models import load_model
from .results import DEFECTIVE, ERROR, OVERLAYS, REPORT, RUN, TABLE, fingerprint
from .run import BATCH_SIZE, predict

DEFAULT_OUTPUT = Path("predictions")
EXIT_DEFECT = 3
EPILOG = f"""
MODEL is a checkpoint (.ckpt), an export (.onnx, or .xml of OpenVINO), or the folder that a training or an export left
it in. IMAGES are files, folders with their subfolders, and patterns in quotes. An interrupted run goes on when the
command is given again; images that have changed since are predicted again. The exit code is 0, 1 where something is
wrong with the arguments, and with --fail_on_defect {EXIT_DEFECT} where an image is defective or cannot be judged.

examples:
  vae-attention predict model.ckpt new_parts
  vae-attention predict weights/openvino/model.xml "line3/**/*.png" --output line3 --fail_on_defect
"""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="vae-attention predict",
        description="Judge images: a table, a picture per image, and a report to open in a browser.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="checkpoint, export, or folder of one")
    parser.add_argument("images", nargs="+", help="files, folders, patterns")
    parser.add_argument("--output", type=Path, help=f"folder ({DEFAULT_OUTPUT}, or {DEFAULT_OUTPUT}-2 and so on)")
    parser.add_argument(
        "--fail_on_defect", action="store_true", help=f"exit code {EXIT_DEFECT} if anything is defective"
    )
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE, help=f"most images at once ({BATCH_SIZE})")
    parser.add_argument("--device", help="of a checkpoint: cpu or cuda (cuda where there is one)")
    return parser


def choose_folder(given: Path | None, model: Path, default: Path = DEFAULT_OUTPUT) -> Path:
    """Return the folder to write to: the one that was named, or the first that is free or holds this model's run."""
    if given is not None:
        return given
    sha256, number = fingerprint(model), 1
    while True:
        folder = default if number == 1 else default.with_name(f"{default.name}-{number}")
        told = read_json(folder / RUN)
        if not folder.exists() or (told is not None and told["sha256"] == sha256):
            return folder
        number += 1


def summarise(rows: Sequence[dict[str, Any]]) -> str:
    """Say in a few lines what came out, and how right that is where the truth is known."""
    counts = Counter(row["label"] for row in rows)
    lines = [f"{len(rows)} images: " + ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))]
    known = Counter((row["truth"], row["label"]) for row in rows if row["truth"] and row["label"] != ERROR)
    if known:
        bad, fine = (
            sum(count for (truth, _), count in known.items() if truth == kind) for kind in ("defective", "good")
        )
        lines.append(
            f"by the names of folders: {known['defective', 'defective']} of {bad} defective images found, "
            f"{known['good', 'defective']} of {fine} good ones called defective"
        )
    lines += [f"  {row['error']}" for row in rows if row["label"] == ERROR][:5]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = make_parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    try:
        require_whole("--batch_size", given.batch_size, 1)
        inputs = find_inputs(given.images)
        model = load_model(given.model, given.device)
        folder = choose_folder(given.output, model.file)
        rows = predict(model, inputs, folder, "Predictions", f"Model {model.file}", given.batch_size)
    except (OSError, ValueError) as error:
        print(f"vae-attention predict: {error}", file=sys.stderr)
        return 1
    print(summarise(rows))
    print(f"table    {folder / TABLE}\npictures {folder / OVERLAYS}\nreport   {folder / REPORT}")
    return EXIT_DEFECT if given.fail_on_defect and any(row["label"] in {DEFECTIVE, ERROR} for row in rows) else 0

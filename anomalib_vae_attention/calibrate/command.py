"""The command ``vae-attention calibrate``: thresholds for another false-positive rate, or from other good images."""

import json
import logging
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomalib_vae_attention.anomalib_support.exports import SHAPES, normalisation, raw_thresholds
from anomalib_vae_attention.common.argument_checks import command_parser
from anomalib_vae_attention.common.atomic_files import replacing
from anomalib_vae_attention.common.images import read_tensor
from anomalib_vae_attention.common.models import find_model, list_inputs
from anomalib_vae_attention.lightning_model import VaeAttention
from anomalib_vae_attention.thresholds.normal_quantile import NormalQuantile
from anomalib_vae_attention.thresholds.restored import CONFIG_KEY, PREFIX

from .exported import open_export

EPILOG = """
Without GOOD_IMAGES the thresholds are taken from the scores of the normal images that the last ones were taken from,
which the model carries. With them they are taken from new images: of good parts that were not trained on.

examples:
  vae-attention calibrate model.ckpt --false_positive_rate 0.02
  vae-attention calibrate weights/onnx/model.onnx good_parts --false_positive_rate 0.05
"""


def collect(thresholds: NormalQuantile, folder: Path, run: Callable[[torch.Tensor], Any]) -> None:
    """Set thresholds from a folder of good images.

    Args:
        thresholds: What sets them.
        folder: The folder; images below it count, too.
        run: Takes an image of shape ``(1, 3, H, W)`` to its raw score and map.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If an image cannot be scored, naming it.
    """
    files = list_inputs(folder)
    if not files:
        msg = f"There is no image below {folder}." if folder.is_dir() else f"There is no folder {folder}."
        raise FileNotFoundError(msg)
    for file in files:
        image = read_tensor(file)[None]
        try:
            score, anomaly_map = run(image)
            if not float(torch.as_tensor(score).max()) < 1:
                msg = "it cannot be judged"
                raise ValueError(msg)  # noqa: TRY301 - one message for all that may go wrong
            thresholds.update(torch.as_tensor(score), torch.as_tensor(anomaly_map))
        except (RuntimeError, ValueError) as error:
            msg = f"{file} cannot be scored by this model: {error}"
            raise ValueError(msg) from error
    thresholds.compute()


def calibrate_checkpoint(file: Path, folder: Path | None, thresholds: NormalQuantile, target: Path) -> None:
    """Write a checkpoint with other thresholds; all else stays as it is."""
    # Thresholds that are given when it is loaded are taken from the checkpoint's scores, where it has some.
    given = {"post_processor": thresholds} if folder is None else {}
    model = VaeAttention.load_from_checkpoint(file, **given, map_location="cpu").eval()

    def run(image: torch.Tensor) -> tuple[Any, Any]:
        prediction = model.model(model.pre_processor(image) if model.pre_processor else image)
        return prediction.pred_score, prediction.anomaly_map

    if folder is not None:
        with torch.inference_mode():
            collect(thresholds, folder, run)
    elif thresholds.calibration is None:
        thresholds.recompute()
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    own = {f"{PREFIX}{name}": value for name, value in thresholds.state_dict().items()}
    state = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(PREFIX)}
    checkpoint["state_dict"] = {**state, **own}
    checkpoint[CONFIG_KEY] = thresholds.checkpoint_config()
    checkpoint["anomalib_components_enabled"] = {
        **checkpoint.get("anomalib_components_enabled", {}),
        "post_processor": True,
    }
    content = BytesIO()
    torch.save(checkpoint, content)
    with replacing(target) as temporary:
        # Of a full disk torch would say that a position is unexpected.
        temporary.write_bytes(content.getbuffer())


def calibrate_export(file: Path, folder: Path | None, thresholds: NormalQuantile, target: Path) -> None:
    """Write an export with other thresholds; all else stays as it is."""
    export = open_export(file)
    if folder is None:
        thresholds.calibration = export.description.get("calibration") or None
        thresholds.recompute()
    else:
        export.write(dict.fromkeys(SHAPES, (1.0, 0.0)))
        run = export.open()
        collect(thresholds, folder, lambda image: run(image.numpy().astype(np.float32)))
    export.write({level: normalisation(thresholds, level) for level in SHAPES})
    told = {
        "raw_thresholds": json.dumps(raw_thresholds(thresholds)),
        "thresholds_from": thresholds.describe(),
        "calibration": thresholds.calibration or "",
    }
    export.save(target, {**export.description, **told})


def main(arguments: list[str] | None = None) -> None:
    """Run the command, with the arguments of the command line by default."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("anomalib_vae_attention").setLevel(logging.INFO)
    parser = command_parser(
        "calibrate",
        "Set the thresholds of a checkpoint (.ckpt) or an export (.onnx, .xml) for a false-positive rate.",
        EPILOG,
    )
    parser.add_argument("model", type=Path, help="checkpoint or export of vae_attention, or folder of one")
    parser.add_argument("good_images", type=Path, nargs="?", help="folder of images of good parts")
    parser.add_argument("--false_positive_rate", type=float, required=True, help="of images, such as 0.01 for 1 %%")
    parser.add_argument("--pixel_false_positive_rate", type=float, help="of pixels (as of images)")
    parser.add_argument("--output", type=Path, help="file to write (the model itself)")
    given = parser.parse_args(arguments)
    model = find_model(given.model)
    target = given.output or model
    if target.is_dir() or target.suffix != model.suffix:
        msg = f"--output {target} must be a file that ends in {model.suffix}, as {model} does."
        raise ValueError(msg)
    thresholds = NormalQuantile(given.false_positive_rate, given.pixel_false_positive_rate)
    work = calibrate_checkpoint if model.suffix == ".ckpt" else calibrate_export
    work(model, given.good_images, thresholds, target)
    print(f"{target}: {thresholds.describe()}")

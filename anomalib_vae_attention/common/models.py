"""What trainings, exports and predictions leave in a folder: the file of the model, and pictures that are no input."""

import logging
from pathlib import Path

from .folders import kind_of
from .mvtec_layout import list_images

logger = logging.getLogger(__name__)

PLACES = (
    "model.ckpt",
    "weights/lightning/model.ckpt",
    "model.xml",
    "weights/openvino/model.xml",
    "model.onnx",
    "weights/onnx/model.onnx",
)
"""Where trainings and exports leave models, those first that are taken where there are several."""
SUFFIXES = (".ckpt", ".xml", ".onnx")
TABLE = "predictions.csv"
"""Table of a prediction, beside its pictures."""
SHEET = "worst_first.png"
"""Pictures of an explanation on one sheet, likewise."""


def find_model(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """Return a model's file, if it has one of the endings, or the one that a folder of a training or an export holds.

    Raises:
        FileNotFoundError: If there is none; the message names the files that there are below a folder.
        ValueError: If a file has another ending.
    """
    if path.is_file():
        if path.suffix not in suffixes:
            advice = ": export it to OpenVINO or ONNX, or name its checkpoint" if path.suffix == ".pt" else ""
            msg = f"{path} is none of {', '.join(suffixes)}{advice}."
            raise ValueError(msg)
        return path
    places = [path / place for place in PLACES if place.endswith(suffixes)]
    found = next((file for file in places if file.is_file()), None)
    if found is not None:
        return found
    if not path.is_dir():
        msg = f"There is no file or folder {path}."
        raise FileNotFoundError(msg)
    there = sorted(str(file) for suffix in suffixes for file in path.glob(f"**/*{suffix}"))
    advice = f"Name one of {', '.join(there[:5])}." if there else f"Name a file ({', '.join(suffixes)})."
    msg = f"The folder {path} holds no model where a training or an export would leave it. {advice}"
    raise FileNotFoundError(msg)


def list_inputs(folder: Path) -> list[Path]:
    """List the images below a folder, but masks, and what this package has written there; warn of these.

    Args:
        folder: The folder; one that there is not holds no image.

    Returns:
        The files, sorted.
    """
    images = list_images(folder)
    parents = {image.parent for image in images}
    below = {place for parent in parents for place in (parent, *parent.parents) if folder in place.parents}
    marks = TABLE, SHEET, *PLACES
    others = [one for one in below if kind_of(one.name) == "masks" or any((one / mark).is_file() for mark in marks)]
    kept = [image for image in images if not any(place in image.parents for place in others)]
    if len(kept) < len(images):
        number = len(images) - len(kept)
        logger.warning("%s images below %s are left out: masks, or an earlier run wrote them.", number, folder)
    return kept

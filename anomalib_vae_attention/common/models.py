"""Which file a model is in, where a folder was named."""

from pathlib import Path

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


def find_model(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """Return a model's file, if it has one of the endings, or the one that a folder of a training or an export holds.

    Raises:
        FileNotFoundError: If there is none; the message names the files that there are below a folder.
        ValueError: If a file has another ending.
    """
    if path.is_file():
        if path.suffix not in suffixes:
            msg = f"{path} is none of {', '.join(suffixes)}."
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

"""Judge an image with ONNX Runtime, without this package: ``python onnx_runtime.py model.onnx image.png``."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def to_input(pixels: Any) -> Any:  # noqa: ANN401
    """Make the model's input, float32 of shape (1, 3, H, W), red, green, blue from 0 to 1, of an image's array.

    It may be bytes, or floats from 0 to 1: grey (H, W), colour (H, W, 3) or colour with transparency (H, W, 4), which
    is left out; or an image of Pillow. Of OpenCV's order, blue first, give ``pixels[..., ::-1]``: that cannot be seen
    in the numbers.
    """
    if isinstance(pixels, Image.Image) and not pixels.mode.startswith(("I", "F")):
        # Turned as its EXIF data say; and numbers of a palette, or of printing inks, are no colours.
        pixels = ImageOps.exif_transpose(pixels).convert("RGB")
    pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    if pixels.ndim != 3 or pixels.shape[2] not in {3, 4}:
        raise ValueError(f"an image has the shape (H, W), (H, W, 3) or (H, W, 4), not {pixels.shape}")  # noqa: EM102, TRY003
    pixels = pixels[..., :3].astype(np.float32) / (255 if pixels.dtype == np.uint8 else 1)
    if not pixels.max() <= 1 or not pixels.min() >= 0:
        raise ValueError("floats must be from 0 to 1, bytes of type uint8")  # noqa: EM101, TRY003
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]


def main(model: Path, image: Path) -> tuple[float, bool, Any]:
    """Return the score, from 0 to 1, whether the image is defective, and its anomaly map."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = ["pred_score", "pred_label", "anomaly_map"]
    score, label, anomaly_map = session.run(names, {"input": to_input(Image.open(image))})
    return float(score[0]), bool(label[0]), anomaly_map[0, 0]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))

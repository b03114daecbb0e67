"""Judge an image with OpenVINO, without this package: ``python open_vino.py model.xml image.png``."""

import sys
from pathlib import Path
from typing import Any

import openvino
from onnx_runtime import to_input
from PIL import Image


def main(model: Path, image: Path) -> tuple[float, bool, Any]:
    """Return the score, from 0 to 1, whether the image is defective, and its anomaly map."""
    # An .xml file asks for single precision itself, all but a few steps of it. An .onnx file needs this.
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled(to_input(Image.open(image)))
    return float(result["pred_score"][0]), bool(result["pred_label"][0]), result["anomaly_map"][0, 0]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))

"""Let an ONNX export's backbone compute in bytes: ``python int8_onnx.py model.onnx GOOD_IMAGES int8.onnx``.

The images' activations set the scales. Scores shift, so calibrate the new file:
``vae-attention calibrate int8.onnx GOOD_IMAGES --false_positive_rate 0.01``.
"""

import sys
from pathlib import Path
from typing import Any

from onnx_runtime import to_input
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from PIL import Image


class Images(CalibrationDataReader):
    """Read the images of a folder."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir())

    def get_next(self) -> Any:  # noqa: ANN401
        """Return the next input of the model, or ``None`` after the last."""
        return {"input": to_input(Image.open(self.files.pop(0)))} if self.files else None


def main(model: Path, good_images: Path, target: Path) -> None:
    """Write the quantised model. Its only convolutions are the backbone's; what comes after them stays as it is."""
    options: dict[str, Any] = {"op_types_to_quantize": ["Conv"], "per_channel": True, "weight_type": QuantType.QInt8}
    quantize_static(model, target, Images(good_images), activation_type=QuantType.QUInt8, **options)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))

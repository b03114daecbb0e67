"""Judge an image with anomalib's OpenVINOInferencer: ``python openvino_inferencer.py model.xml image.png``."""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from anomalib.deploy import OpenVINOInferencer


def main(model: Path, image: Path) -> tuple[float, bool, Any]:
    """Return the score, from 0 to 1, whether the image is defective, and its anomaly map."""
    # It makes a folder openvino_cache where it is called, which need not be writable.
    file = model.resolve()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        inferencer = OpenVINOInferencer(file, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    result: Any = inferencer.predict(image)
    return result.pred_score.item(), result.pred_label.item(), result.anomaly_map.squeeze()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))

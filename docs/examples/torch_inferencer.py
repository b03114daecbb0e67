"""Judge an image with anomalib's TorchInferencer: ``python torch_inferencer.py model.pt image.png``.

It takes the environment variable ``TRUST_REMOTE_CODE=1``. An
exported ``.pt`` is a pickle, which may run code: load only your own.
"""

import sys
from pathlib import Path
from typing import Any

from anomalib.deploy import TorchInferencer


def main(model: Path, image: Path) -> tuple[float, bool, Any]:
    """Return the score, from 0 to 1, whether the image is defective, and its anomaly map."""
    result: Any = TorchInferencer(model, device="cpu").predict(image)
    return result.pred_score.item(), result.pred_label.item(), result.anomaly_map.squeeze().numpy()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))

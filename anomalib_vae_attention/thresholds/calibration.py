"""What thresholds are taken from: scores and map levels of normal images, small enough to travel with the model."""

import base64
import json
import zlib

import numpy as np
import torch

from anomalib_vae_attention.anomalib_support.distributed import gather

from .conformal import LEVELS, image_threshold, pixel_levels, pixel_threshold


class Calibration:
    """Raw scores of normal images, and how many pixels of their maps lie at each level."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.levels = torch.zeros(LEVELS + 1, dtype=torch.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.scores)

    def update(self, pred_score: torch.Tensor, anomaly_map: torch.Tensor) -> None:
        """Add normal images.

        Args:
            pred_score: Raw scores of shape ``(B,)``, in ``[0, 1]``.
            anomaly_map: Raw anomaly maps of shape ``(B, ..., H, W)``, in ``[0, 1]``, all of one size.

        Raises:
            ValueError: If a score or a pixel is not in ``[0, 1]``.
        """
        for values in (pred_score, anomaly_map):
            if not bool(((values >= 0) & (values <= 1)).all()):
                msg = "NormalQuantile needs scores and anomaly maps in [0, 1], as those of vae_attention."
                raise ValueError(msg)
        self.scores += pred_score.flatten().tolist()
        self.levels += pixel_levels(anomaly_map)

    def gathered(self) -> "Calibration":
        """Return the images of all processes together; all must call it."""
        together = Calibration()
        for scores, levels in gather((self.scores, self.levels)):
            together.scores += scores
            together.levels += levels
        return together

    def thresholds(self, image_rate: float, pixel_rate: float) -> tuple[float, float]:
        """Return the raw thresholds of images and pixels that keep false-positive rates in ``(0, 1)``."""
        image = image_threshold(torch.tensor(self.scores), image_rate)
        return image, pixel_threshold(self.levels, len(self), pixel_rate)

    def to_text(self) -> str:
        """Return it as text, some tens of KiB, which checkpoints and exports can hold."""
        packed = zlib.compress(self.levels.to(torch.int32).numpy().astype("<i4").tobytes())
        return json.dumps({"scores": self.scores, "levels": base64.b64encode(packed).decode()})

    @classmethod
    def from_text(cls, text: str) -> "Calibration":
        """Return what :meth:`to_text` wrote, exactly.

        Raises:
            ValueError: If it is something else.
        """
        calibration = cls()
        try:
            content = json.loads(text)
            levels = np.frombuffer(zlib.decompress(base64.b64decode(content["levels"])), "<i4")
            calibration.levels += torch.from_numpy(levels.astype(np.int64))
            calibration.scores += [float(score) for score in content["scores"]]
        except (KeyError, TypeError, RuntimeError, ValueError, zlib.error) as error:
            msg = f"The calibration scores are damaged: {error}"
            raise ValueError(msg) from error
        return calibration

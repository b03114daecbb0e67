"""Trace a checkpoint for libtorch: ``python traced.py model.ckpt traced.pt 448 448``.

The last two are your images' height and width. Tracing wants tensors, where the model returns a named tuple: hence the wrapper.
"""

import sys
from pathlib import Path

import torch

from anomalib_vae_attention import VaeAttention


class Tensors(torch.nn.Module):
    """Return score, label, anomaly map and mask of images ``(B, 3, H, W)``, B up to 8, from 0 to 1."""

    def __init__(self, model: VaeAttention) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Judge images."""
        output = self.model(image)
        return output.pred_score, output.pred_label, output.anomaly_map, output.pred_mask


def main(checkpoint: Path, target: Path, size: tuple[int, int]) -> None:
    """Write the traced model."""
    model = VaeAttention.load_from_checkpoint(checkpoint).eval()
    with torch.no_grad():
        torch.jit.trace(Tensors(model), torch.rand(2, 3, *size)).save(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4])))

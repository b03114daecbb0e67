"""Trace a checkpoint for libtorch: ``python traced.py model.ckpt traced.pt 448 448``.

The last two are your images' height and width. Tracing wants tensors, where the
model returns a named tuple: hence the wrapper.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.scoring import call_defective


class Tensors(torch.nn.Module):
    """Return score, label, anomaly map and mask of images ``(B, 3, H, W)``, B up to 8, from 0 to 1."""

    def __init__(self, model: VaeAttention) -> None:
        super().__init__()
        # The tracer looks at all that a module has, and a trained model without its trainer is none for it.
        self.pre_processor, self.model, self.post_processor = model.pre_processor, model.model, model.post_processor

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Judge images."""
        raw = self.model(self.pre_processor(image))
        output: Any = call_defective(raw.pred_score >= 1, self.post_processor(raw))
        return output.pred_score, output.pred_label, output.anomaly_map, output.pred_mask


def main(checkpoint: Path, target: Path, size: tuple[int, int]) -> None:
    """Write the traced model."""
    model = VaeAttention.load_from_checkpoint(checkpoint).eval()
    wrapped, example = Tensors(model), torch.rand(2, 3, *size)
    with torch.no_grad():
        # The first images of a size have matrices made for it, which must not be part of what is traced.
        wrapped(example)
        torch.jit.trace(wrapped, example).save(target)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4])))

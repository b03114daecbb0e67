"""How far the activations of normal images are from those of their reconstructions, at every place of a layer."""

from collections.abc import Mapping

import torch
from torch import nn

from anomalib_vae_attention.reference import require_images
from anomalib_vae_attention.scoring import may_look

from .encoder_gradients import EncoderGradients

SHRINKAGE = 0.05
"""Share of a channel's mean that is added to each place: where normal images never change, small changes stay small."""
TINY = 1e-12
"""Least variance: that of channels that are dead on all normal images."""


class ResidualVariance(nn.Module):
    """The mean square of ``A - A_hat`` over normal images, per layer, channel and place, as streaming sums.

    Args:
        shapes: Shape ``(C, h, w)`` of each layer, by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.start(shapes)

    @staticmethod
    def _buffer(layer: str) -> str:
        return layer.replace(".", "_")

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Forget everything and get ready to collect these layers."""
        device = next((buffer.device for buffer in self.buffers()), None)
        self._buffers.clear()
        self.layers, self._count = list(shapes), 0
        for layer, shape in shapes.items():
            self.register_buffer(self._buffer(layer), torch.zeros(shape, device=device))

    def update(self, seen: EncoderGradients) -> None:
        """Add a batch of images, encoded."""
        reconstruction = seen.of_decoded(seen.posterior.mean)
        self._count += len(seen.image)
        for layer, ours, theirs in zip(self.layers, seen.activations, reconstruction.activations, strict=True):
            self.get_buffer(self._buffer(layer)).add_((ours - theirs).square().sum(0))

    def finish(self) -> None:
        """End the collection.

        Raises:
            ValueError: If there was no image.
        """
        require_images(self._count)
        for layer in self.layers:
            variance = self.get_buffer(self._buffer(layer))
            variance.div_(self._count)
            variance.add_(SHRINKAGE * variance.mean((1, 2), keepdim=True)).clamp_min_(TINY)

    def of(self, layer: str) -> torch.Tensor:
        """Return the variance of a layer, of shape ``(C, h, w)``, greater than 0.

        Raises:
            ValueError: If nothing was learnt of the layer.
        """
        name = self._buffer(layer)
        if name not in self._buffers or (may_look(self.get_buffer(name)) and not self.get_buffer(name).any()):
            msg = (
                f"attention_layers: attention='activation_energy' has learnt nothing of {layer!r}; train with it among "
                "the attention_layers, or call the model's collect with the training images and these layers."
            )
            raise ValueError(msg)
        return self.get_buffer(name)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Take of a checkpoint the layers that this model looks at; of others nothing was learnt."""
        for name, buffer in self._buffers.items():
            if buffer is not None:
                state_dict.setdefault(prefix + name, torch.zeros_like(buffer))
        for key in [key for key in state_dict if key.startswith(prefix) and key[len(prefix) :] not in self._buffers]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)

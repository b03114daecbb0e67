"""Scales: maps and image scores of each attention on normal images, by the attention's name."""

from typing import NamedTuple

import torch
from torch import nn

from .attention_maps import ATTENTIONS

SAVED_ORDER = ("energy", "activation_energy", "latent", "mean", "normal_difference", "reconstruction", "elbo_gradient")
"""The attention of each element of ``map_scale``, ``score_mean`` and ``score_std`` in a checkpoint. It is frozen.

The scale of any other attention is saved by its name, as ``scale_NAME``.
"""
SAVED_IN_ORDER = ("map_scale", "score_mean", "score_std")


class Scale(NamedTuple):
    """Mean of an attention's maps, and mean and standard deviation of its image scores, each of shape ``()``."""

    map_mean: torch.Tensor
    score_mean: torch.Tensor
    score_std: torch.Tensor


class Scales(nn.Module):
    """The scales of all attentions, 0 where unknown. A state dict names them like buffers of the parent module."""

    map_scale: torch.Tensor
    score_mean: torch.Tensor
    score_std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in SAVED_IN_ORDER:
            self.register_buffer(name, torch.zeros(len(SAVED_ORDER)))
        for attention in ATTENTIONS:
            if attention not in SAVED_ORDER:
                self.register_buffer(f"scale_{attention}", torch.zeros(3))
        self._unknown: frozenset[str] = frozenset()

    def of(self, attention: str) -> Scale:
        """Return the scale of an attention, whose tensors are views of the buffers.

        Raises:
            RuntimeError: If the loaded checkpoint does not have it.
        """
        if attention in self._unknown:
            msg = (
                f"The checkpoint does not know attention={attention!r}, which was added after it was made: train "
                "again, or call the model's collect with the normal images."
            )
            raise RuntimeError(msg)
        if attention not in SAVED_ORDER:
            return Scale(*self.get_buffer(f"scale_{attention}").unbind())
        index = SAVED_ORDER.index(attention)
        return Scale(self.map_scale[index], self.score_mean[index], self.score_std[index])

    def set(self, attention: str, map_mean: torch.Tensor, scores: torch.Tensor) -> None:
        """Set the scale of an attention from normal images: the mean of its maps, and image scores of any shape."""
        scores = scores.flatten()
        self._unknown -= {attention}
        scale = self.of(attention)
        scale.map_mean.copy_(map_mean.clamp_min(torch.finfo(map_mean.dtype).tiny))
        scale.score_mean.copy_(scores.mean())
        deviation = scores.std() if len(scores) > 1 else scores.abs().mean()
        scale.score_std.copy_(deviation.clamp_min(1e-6 * scores.abs().mean()).clamp_min(1e-12))

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix.removesuffix("scales."), keep_vars)

    def take(self, state_dict: dict, prefix: str) -> None:
        """Give scales that are named like buffers of the parent their own names; the parent calls it before loading."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if name in SAVED_IN_ORDER or name.startswith("scale_"):
                state_dict[f"{prefix}scales.{name}"] = state_dict.pop(key)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Load what this model knows: a checkpoint may have fewer attentions, or more."""
        for name in [name for name in self._buffers if name not in SAVED_IN_ORDER]:
            state_dict.setdefault(prefix + name, torch.zeros(3))
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if key.removeprefix(prefix) not in self._buffers:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._unknown = frozenset()
        self._unknown = frozenset(name for name in ATTENTIONS if not self.of(name).map_mean > 0)

"""What every normal reference does: collect posteriors of normal images, then match others against them."""

from typing import NamedTuple

import torch
from torch import nn

from anomalib_vae_attention.vae import Posterior

HIDDEN = 1e30
"""What the logits of exemplars that are not to be seen are lowered by: infinity less infinity would be no number."""


class Match(NamedTuple):
    """What a normal reference says of a batch of posteriors.

    Attributes:
        energy: Latent energy ``e``, of shape ``(B, h, w)``; below 0 only where it is judged by its level.
        gradient: Gradient of ``E = 1/2 sum e`` by the posterior mean, matches held fixed, of shape ``(B, d, h, w)``;
            the noise level, the last latent, may be left out, as it is not compared.
        latent: The normal latent that each cell was compared with, of shape ``(B, d, h, w)``.
        nearest: Energy against the nearest latent that the reference knows, of shape ``(B, h, w)``, at least 0: what an
            image is judged by, where maps use the energy.
    """

    energy: torch.Tensor
    gradient: torch.Tensor
    latent: torch.Tensor
    nearest: torch.Tensor


class LeftOut(NamedTuple):
    """Energies of normal images, each left out of the reference: what normal images score that were not learnt.

    Attributes:
        energy: See :class:`Match`, of shape ``(n, h, w)``.
        nearest: See :class:`Match`, of shape ``(n, h, w)``.
        mahalanobis: How near energies are to the Mahalanobis distance, from 0 to 1: 1 where departures are those of one
            Gaussian, as in a fabric that is alike everywhere.
    """

    energy: torch.Tensor
    nearest: torch.Tensor
    mahalanobis: float = 0.0


class NormalReference(nn.Module):
    """Base of the normal references: collect posteriors of normal images, then match others against them."""

    def start(self, one_layout: bool = False) -> None:
        """Forget everything and get ready to collect; with ``one_layout``, parts lie alike in all pictures."""
        raise NotImplementedError

    def update(self, posterior: Posterior) -> None:
        """Collect the posteriors of a batch of normal images."""
        raise NotImplementedError

    def finish(self) -> LeftOut:
        """End the collection.

        Returns:
            Energies of some of the normal images, each left out of the reference.

        Raises:
            ValueError: If no image was collected.
        """
        raise NotImplementedError

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Height and width of the grid that the reference was collected on."""
        raise NotImplementedError

    def match(self, posterior: Posterior) -> Match:
        """Match posteriors, mean of shape ``(B, d, h, w)``, against the reference."""
        raise NotImplementedError

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes that the buffers should have, going by the one that says the size of the grid."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Take the buffers' shapes from the checkpoint: they depend on the number and size of the images."""
        for name, buffer in self._buffers.items():
            loaded = state_dict.get(prefix + name)
            if buffer is not None and isinstance(loaded, torch.Tensor):
                self._buffers[name] = torch.empty_like(loaded, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        errors: list[str] = args[-1]
        given = {name: tuple(buffer.shape) for name, buffer in self._buffers.items() if buffer is not None}
        try:
            expected = self.shapes()
        except (IndexError, ValueError):
            expected = {}
        if given != expected and any(buffer.numel() for buffer in self.buffers()):
            misfits = {prefix + name: shape for name, shape in given.items() if shape != expected.get(name)}
            errors.append(f"the shapes of the normal reference do not fit together: {misfits}.")


def require_images(count: int) -> None:
    """Raise a ``ValueError`` where there is no image to learn from."""
    if count == 0:
        msg = "There is no normal image to learn from: the training set is empty."
        raise ValueError(msg)

"""What an image VAE's encoder makes of images, and the gradients of that by its layers, without autograd."""

import math
from collections.abc import Iterator, Sequence

import torch

from .vae import ImageVAE

PARALLEL_PIXELS = 2**20
"""Pixels, images times gradients, that are carried back at a time: more at once take more memory, and longer."""


class EncoderGradients:
    """The posterior of images, activations of the encoder, and the posterior's gradients by them.

    Args:
        vae: The VAE.
        image: Images of shape ``(B, C, H, W)`` with the network's channels, pixels from 0 to 1.
        layers: The encoder's own names of the layers to look at; none where only the posterior is wanted.

    Attributes:
        posterior: The posterior q(z|x).
    """

    def __init__(self, vae: ImageVAE, image: torch.Tensor, layers: Sequence[str]) -> None:
        self.vae, self.image, self.layers = vae, image, list(layers)
        encoder = vae.encoder
        kept = encoder.from_layer(min(layers, key=encoder.map_layers.index)) if layers else []
        self._trace = encoder.trace(image, kept)
        self.posterior = vae.split(self._trace[encoder.steps[-1].name])

    @property
    def activations(self) -> list[torch.Tensor]:
        """Activations of each layer, of shape ``(B, C, h, w)``."""
        return [self._trace[name] for name in self.layers]

    @property
    def latent_dim(self) -> int:
        """Number of latents ``d``."""
        return self.posterior.mean.shape[1]

    def of_decoded(self, latent: torch.Tensor) -> "EncoderGradients":
        """Return the same for what latents ``(B, d)`` are decoded to."""
        return EncoderGradients(self.vae, self.vae.decode(latent), self.layers)

    def by_parameters(self, parameters: Sequence[int]) -> list[torch.Tensor]:
        """Return gradients of ``P`` parameters of the posterior by each layer, of shape ``(B, P, C, h, w)``.

        Args:
            parameters: Which of them: 0 to ``d - 1`` are the means, ``d`` to ``2 d - 1`` the log variances.
        """
        chosen = torch.eye(2 * self.latent_dim, device=self.image.device)[list(parameters)]
        # The length of a tensor would fix the number of images in an export; its shape does not.
        return self._back(chosen.expand(self.posterior.mean.shape[0], -1, -1))

    def by_mean(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Carry a gradient by the posterior means, of shape ``(B, d)``, back to each layer, ``(B, C, h, w)``."""
        seed = torch.cat([gradient, torch.zeros_like(gradient)], dim=1)
        return [by_layer[:, 0] for by_layer in self._back(seed[:, None])]

    def _back(self, seeds: torch.Tensor) -> list[torch.Tensor]:
        gradients = self.vae.encoder.adjoint(seeds, self._trace, self.layers)
        return [gradients[name] for name in self.layers]


def encode_in_parts(
    vae: ImageVAE, image: torch.Tensor, layers: Sequence[str], gradients: int
) -> Iterator[EncoderGradients]:
    """Encode images in parts, such that this many gradients per image fit in memory; an export takes all at once."""
    part = max(1, PARALLEL_PIXELS // (gradients * math.prod(image.shape[-2:])))
    for some in [image] if torch.compiler.is_compiling() else image.split(part):
        yield EncoderGradients(vae, some, layers)

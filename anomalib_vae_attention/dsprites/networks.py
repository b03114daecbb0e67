"""The networks of Kim and Mnih ("Disentangling by Factorising", ICML 2018, appendix A) for 64x64 binary images."""

from typing import NamedTuple

import torch
from torch import nn

from anomalib_vae_attention.image_vae.conv import ConvEncoder
from anomalib_vae_attention.image_vae.network import Trace

from .drawing import SIZE

LAYERS = ("conv1", "conv2", "conv3", "conv4")
"""Names of the encoder's convolutions, whose activations, after the ReLU, attention can look at."""

CHANNELS = (1, 32, 32, 64, 64)
HIDDEN = 128
SMALLEST = SIZE >> len(LAYERS)
"""Height and width of the last convolution's output, in cells."""


class LatentLayer(nn.Linear):
    """A layer that reads or writes latents: it is small, and works in the data type of its weights under autocast."""

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """Apply the layer to signals of shape ``(B, ...)``."""
        with torch.autocast(signal.device.type, enabled=False):
            return super().forward(signal.to(self.weight.dtype))


class Encoded(NamedTuple):
    """What the encoder makes of images.

    Attributes:
        mean: Posterior means, of shape ``(B, d)``.
        log_variance: Logarithms of the posterior variances, of shape ``(B, d)``.
        trace: All activations by the names of the encoder's layers; see :class:`.ConvEncoder`.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor
    trace: Trace

    def activations(self, layer: str) -> torch.Tensor:
        """Return the activations of one of :data:`LAYERS`.

        Their shapes are ``(B, 32, 32, 32)``, ``(B, 32, 16, 16)``, ``(B, 64, 8, 8)`` and ``(B, 64, 4, 4)``.
        """
        return self.trace[_relu(layer)]


def _relu(layer: str) -> str:
    return layer.replace("conv", "relu")


class Encoder(ConvEncoder):
    """Four convolutions and two linear layers from an image to a diagonal Gaussian q(z|x).

    Args:
        latent_dim: Number of latents ``d``.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(CHANNELS[0], latent_dim, (SIZE, SIZE), CHANNELS[1:], HIDDEN, LatentLayer)

    def encode(self, images: torch.Tensor) -> Encoded:
        """Encode images of shape ``(B, 1, 64, 64)``, pixels from 0 to 1."""
        trace = self.trace(images)
        mean, log_variance = trace[self.steps[-1].name].chunk(2, 1)
        return Encoded(mean, log_variance, trace)

    def by_activations(self, gradient: torch.Tensor, encoded: Encoded, layer: str) -> torch.Tensor:
        """Carry gradients on the posterior's parameters back to a layer's activations.

        Made of ordinary operations on the weights, so that what is computed from the result can be differentiated once
        more, by one backward pass. A ReLU's second derivative is 0 almost everywhere: only its mask takes part. From
        gradients by means and log variances, ``(B, P, 2 d)`` with several per image, to ``(B, P, C, h, w)``.
        """
        return self.adjoint(gradient, encoded.trace, [_relu(layer)])[_relu(layer)]

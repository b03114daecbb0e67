"""The networks of Kim and Mnih ("Disentangling by Factorising", ICML 2018, appendix A) for 64x64 binary images."""

from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

LAYERS = ("conv1", "conv2", "conv3", "conv4")
"""Names of the encoder's convolutions, whose activations attention can look at."""

CHANNELS = (1, 32, 32, 64, 64)
HIDDEN = 128
SMALLEST = 4


class Encoded(NamedTuple):
    """What the encoder makes of images.

    Attributes:
        mean: Posterior means, of shape ``(B, d)``.
        log_variance: Logarithms of the posterior variances, of shape ``(B, d)``.
        activations: Outputs of the convolutions after their ReLU, of shapes ``(B, 32, 32, 32)``, ``(B, 32, 16, 16)``,
            ``(B, 64, 8, 8)`` and ``(B, 64, 4, 4)``.
        hidden: Output of the hidden layer after its ReLU, of shape ``(B, 128)``.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor
    activations: tuple[torch.Tensor, ...]
    hidden: torch.Tensor


def in_full_precision(layer: nn.Linear, signal: torch.Tensor) -> torch.Tensor:
    """Apply a layer in the data type of its weights, whatever autocast says: what reads or writes latents is small."""
    with torch.autocast(signal.device.type, enabled=False):
        return layer(signal.to(layer.weight.dtype))


class Encoder(nn.Module):
    """Four convolutions and two linear layers from an image to a diagonal Gaussian q(z|x).

    Args:
        latent_dim: Number of latents ``d``.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        pairs = pairwise(CHANNELS)
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 4, 2, 1) for before, after in pairs)
        self.hidden = nn.Linear(CHANNELS[-1] * SMALLEST**2, HIDDEN)
        self.posterior = nn.Linear(HIDDEN, 2 * latent_dim)

    def forward(self, images: torch.Tensor) -> Encoded:
        """Encode images of shape ``(B, 1, 64, 64)``, pixels from 0 to 1."""
        activations = []
        signal = images
        for convolution in self.convolutions:
            signal = F.relu(convolution(signal))
            activations.append(signal)
        hidden = F.relu(self.hidden(signal.flatten(1)))
        mean, log_variance = in_full_precision(self.posterior, hidden).chunk(2, 1)
        return Encoded(mean, log_variance, tuple(activations), hidden)

    def adjoint(self, gradient: torch.Tensor, encoded: Encoded, layer: str) -> torch.Tensor:
        """Carry gradients on the posterior's parameters back to a layer's activations.

        Made of ordinary operations on the weights, so that what is computed from the result can be differentiated once
        more, by one backward pass. A ReLU's second derivative is 0 almost everywhere: only its mask takes part.

        Args:
            gradient: Gradients by means and log variances, several per image, shape ``(B, P, 2 d)``.
            encoded: What :meth:`forward` made of the images.
            layer: One of :data:`LAYERS`.

        Returns:
            Gradients by the layer's activations, shape ``(B, P, C, h, w)``.
        """
        signal = (gradient @ self.posterior.weight) * (encoded.hidden > 0)[:, None]
        signal = (signal @ self.hidden.weight).unflatten(2, (CHANNELS[-1], SMALLEST, SMALLEST))
        for index in range(len(LAYERS) - 1, LAYERS.index(layer), -1):
            signal = signal * (encoded.activations[index] > 0)[:, None]
            weight = cast("nn.Conv2d", self.convolutions[index]).weight
            signal = F.conv_transpose2d(signal.flatten(0, 1), weight, stride=2, padding=1)
            signal = signal.unflatten(0, gradient.shape[:2])
        return signal


class Decoder(nn.Module):
    """Two linear layers and four transposed convolutions from latents to the logits of an image.

    Args:
        latent_dim: Number of latents ``d``.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        widths = CHANNELS[::-1]
        pairs = pairwise(widths)
        self.linears = nn.ModuleList([nn.Linear(latent_dim, HIDDEN), nn.Linear(HIDDEN, widths[0] * SMALLEST**2)])
        self.convolutions = nn.ModuleList(nn.ConvTranspose2d(before, after, 4, 2, 1) for before, after in pairs)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents ``(B, d)`` to logits ``(B, 1, 64, 64)``."""
        first, second = self.linears
        hidden = F.relu(in_full_precision(cast("nn.Linear", first), latents))
        signal = F.relu(second(hidden))
        signal = signal.unflatten(1, (CHANNELS[-1], SMALLEST, SMALLEST)).contiguous(memory_format=torch.channels_last)
        *inner, last = self.convolutions
        for convolution in inner:
            signal = F.relu(convolution(signal))
        return last(signal)

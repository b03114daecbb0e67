"""Convolutional networks for small images: each convolution halves the image, then one hidden layer.

With widths 64 and 128 on 28x28 pixels the network for MNIST, with 64, 128 and 256 on 100x100 pixels that for UCSD Ped1
of Liu et al. (CVPR 2020): kernels of 4, stride 2, a hidden layer of 1024, 32 latents. Kim and Mnih's networks for
dSprites are of this kind, too.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import nn

from .network import Network, chain

KERNEL, STRIDE, PADDING = 4, 2, 1


class ConvEncoder(Network):
    """Convolutions, a hidden layer, and a layer for means and log variances of the posterior.

    Layers are ``conv1``, ``relu1``, ``conv2``, ``relu2`` and so on, then ``flatten``, ``hidden``, ``relu``,
    ``posterior``.

    Args:
        channels: Channels of the image.
        latent_dim: Number of latents ``d``.
        size: Height and width of the image in pixels.
        widths: Channels of each convolution.
        hidden_dim: Width of the hidden layer.
        latent_layer: Class of the layer that writes, or in the decoder reads, latents.

    Attributes:
        sizes: Height and width of the image, and of the output of each convolution.
    """

    def __init__(
        self,
        channels: int,
        latent_dim: int,
        size: Sequence[int],
        widths: Sequence[int],
        hidden_dim: int,
        latent_layer: type[nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        (height, width), least = size, 2 ** len(widths)
        if min(size) < least:
            msg = f"input_size: vae='conv' with {len(widths)} widths takes {least}x{least} pixels or more, not {size}."
            raise ValueError(msg)
        self.sizes = [(height >> halvings, width >> halvings) for halvings in range(len(widths) + 1)]
        pairs = pairwise([channels, *widths])
        self.convolutions = nn.ModuleList(nn.Conv2d(*pair, KERNEL, STRIDE, PADDING) for pair in pairs)
        self.hidden = nn.Linear(widths[-1] * math.prod(self.sizes[-1]), hidden_dim)
        self.posterior = latent_layer(hidden_dim, 2 * latent_dim)
        layers: list[tuple[str, nn.Module]] = []
        for number, convolution in enumerate(self.convolutions, start=1):
            layers += [(f"conv{number}", convolution), (f"relu{number}", nn.ReLU())]
        self.map_layers = [name for name, _ in layers]
        layers += [("flatten", nn.Flatten()), ("hidden", self.hidden), ("relu", nn.ReLU())]
        self.steps = chain([*layers, ("posterior", self.posterior)])


class ConvDecoder(Network):
    """An encoder backwards, from latents to the logits of an image."""

    def __init__(self, encoder: ConvEncoder) -> None:
        super().__init__()
        hidden_dim, latent_dim = encoder.hidden.out_features, encoder.posterior.out_features // 2
        mirrored = cast("list[nn.Conv2d]", list(encoder.convolutions)[::-1])
        sizes = encoder.sizes[::-1]
        self.linears = nn.ModuleList([
            type(encoder.posterior)(latent_dim, hidden_dim),
            nn.Linear(hidden_dim, encoder.hidden.in_features),
        ])
        layers: list[tuple[str, nn.Module]] = []
        for number, linear in enumerate(self.linears, start=1):
            layers += [(f"linear{number}", linear), (f"linear{number}_relu", nn.ReLU())]
        layers.append(("unflatten", nn.Unflatten(1, (mirrored[0].out_channels, *sizes[0]))))
        self.convolutions = nn.ModuleList()
        for number, (of_encoder, (small, large)) in enumerate(zip(mirrored, pairwise(sizes), strict=True), start=1):
            channels = of_encoder.out_channels, of_encoder.in_channels
            # Halving an odd size loses a pixel.
            odd = (large[0] - 2 * small[0], large[1] - 2 * small[1])
            self.convolutions.append(nn.ConvTranspose2d(*channels, KERNEL, STRIDE, PADDING, output_padding=odd))
            layers += [(f"conv{number}", self.convolutions[-1]), (f"relu{number}", nn.ReLU())]
        self.steps = chain(layers[:-1])

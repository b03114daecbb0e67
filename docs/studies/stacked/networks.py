"""Kim and Mnih's networks (:mod:`..networks`) for several runs at once, each with weights of its own.

Every signal and weight has the dimension ``R`` of the runs in front; signals are channels last.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.dsprites.networks import CHANNELS, HIDDEN, LAYERS, SMALLEST

from .convolution import adjoint, convolve, convolve_one_channel, transposed, transposed_to_one_channel
from .convolution import mean_adjoint as mean_of_adjoint
from .layout import Weights

FULL_PRECISION = ("encoder.posterior", "decoder.linears.0")
"""Layers that read or write latents: they are small, and keep the data type of their weights."""


class Encoded(NamedTuple):
    """What the encoders make of images.

    Attributes:
        mean: Posterior means, of shape ``(R, B, d)``.
        log_variance: Logarithms of the posterior variances, of shape ``(R, B, d)``.
        activations: Outputs of the convolutions after their ReLU, of shapes ``(R, B, 32, 32, 32)`` to
            ``(R, B, 4, 4, 64)``.
        hidden: Output of the hidden layer after its ReLU, of shape ``(R, B, 128)``.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor
    activations: tuple[torch.Tensor, ...]
    hidden: torch.Tensor


def encode(images: torch.Tensor, weights: Weights) -> Encoded:
    """Encode images.

    Args:
        images: Shape ``(R, B, 64, 64)``, pixels from 0 to 1, of the working data type.
        weights: As from :func:`.layout.arrange`; all but :data:`FULL_PRECISION` of the images' data type.

    Returns:
        The posteriors, and what lies on the way to them.
    """
    names = [f"encoder.convolutions.{index}" for index in range(len(LAYERS))]
    signal = F.relu(convolve_one_channel(images, weights[f"{names[0]}.weight"], weights[f"{names[0]}.bias"]))
    activations = [signal]
    for name in names[1:]:
        signal = F.relu(convolve(signal, weights[f"{name}.weight"], weights[f"{name}.bias"]))
        activations.append(signal)
    hidden = F.relu(_affine(signal.flatten(2), weights["encoder.hidden.weight"], weights["encoder.hidden.bias"]))
    posterior = weights["encoder.posterior.weight"]
    parameters = _affine(hidden.to(posterior.dtype), posterior, weights["encoder.posterior.bias"])
    mean, log_variance = parameters.chunk(2, 2)
    return Encoded(mean, log_variance, tuple(activations), hidden)


def decode(latents: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Decode latents ``(R, B, d)`` to logits ``(R, B, 64, 64)``, in single precision."""
    first, second = (f"decoder.linears.{index}" for index in range(2))
    hidden = F.relu(_affine(latents, weights[f"{first}.weight"], weights[f"{first}.bias"]))
    matrix = weights[f"{second}.weight"]
    signal = F.relu(_affine(hidden.to(matrix.dtype), matrix, weights[f"{second}.bias"]))
    signal = signal.unflatten(2, (SMALLEST, SMALLEST, CHANNELS[-1]))
    *inner, last = (f"decoder.convolutions.{index}" for index in range(len(CHANNELS) - 1))
    for name in inner:
        signal = F.relu(transposed(signal, weights[f"{name}.weight"], weights[f"{name}.bias"]))
    return transposed_to_one_channel(signal, weights[f"{last}.weight"], weights[f"{last}.bias"])


def mean_adjoint(slope: torch.Tensor, encoded: Encoded, layer: str, weights: Weights) -> torch.Tensor:
    """Carry the gradient of every latent back to a layer, and average it over the places: Liu et al., eq. 1's alpha.

    The latents explained are ``mu_i + s_i(log sigma_i^2)``. As :meth:`.Encoder.by_activations`, it is made of
    ordinary operations on the weights, to be differentiated once more.

    Args:
        slope: Derivative of each latent by its log variance, 0 for the mean alone, shape ``(R, B, d)``.
        encoded: What :func:`encode` made of the images.
        layer: One of :data:`~..networks.LAYERS`.
        weights: As for :func:`encode`.

    Returns:
        Shape ``(R, B, d, C)``.
    """
    runs, batch, latents = slope.shape
    by_mean, by_log_variance = weights["encoder.posterior.weight"].mT.contiguous()[:, None].chunk(2, 2)
    signal = (by_mean + slope[..., None] * by_log_variance) * (encoded.hidden > 0)[:, :, None]
    matrix = weights["encoder.hidden.weight"]
    signal = torch.bmm(signal.view(runs, -1, HIDDEN).to(matrix.dtype), matrix.mT)
    signal = signal.view(runs, batch * latents, SMALLEST, SMALLEST, CHANNELS[-1])
    target = LAYERS.index(layer)
    for index in range(len(LAYERS) - 1, target, -1):
        is_active = (encoded.activations[index] > 0)[:, :, None]
        signal = (signal.unflatten(1, (batch, latents)) * is_active).flatten(1, 2)
        weight = weights[f"encoder.convolutions.{index}.weight"]
        if index == target + 1:
            return mean_of_adjoint(signal, weight).unflatten(1, (batch, latents))
        signal = adjoint(signal, weight)
    return signal.mean((2, 3)).unflatten(1, (batch, latents))


def _affine(signal: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Multiply ``(R, B, C)`` by each run's matrix ``(R, C, D)``, and add its bias ``(R, D)``."""
    return torch.baddbmm(bias[:, None], signal, matrix)

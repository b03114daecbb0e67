"""Kim and Mnih's networks (:mod:`..networks`) for several runs at once, each with weights of its own.

Every signal and weight has the dimension ``R`` of the runs in front; signals are channels last.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.dsprites.networks import CHANNELS, HIDDEN, LAYERS, SMALLEST

from .convolution import (
    convolve,
    convolve_one_channel,
    mean_of_transposed,
    rectify,
    transposed,
    transposed_to_one_channel,
)

Weights = Mapping[str, torch.Tensor]
"""Weights by their names in the Lightning modules, with ``R`` in front."""

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


def prepare(parameters: Weights, working: torch.dtype) -> dict[str, torch.Tensor]:
    """Convert weights for one pass, and sort those next to a flattened signal for channels last.

    Args:
        parameters: Weights of encoder and decoder.
        working: Data type of all products but those of :data:`FULL_PRECISION`.

    Returns:
        The weights by name. ``encoder.hidden.weight`` and ``decoder.linears.1.weight`` are matrices from input to
        output, of shapes ``(R, 1024, 128)`` and ``(R, 128, 1024)``.
    """
    made = {name: value if name.startswith(FULL_PRECISION) else value.to(working) for name, value in parameters.items()}
    grid = (CHANNELS[-1], SMALLEST, SMALLEST)
    hidden, second = made["encoder.hidden.weight"], made["decoder.linears.1.weight"]
    made["encoder.hidden.weight"] = hidden.unflatten(2, grid).permute(0, 3, 4, 2, 1).flatten(1, 3)
    made["decoder.linears.1.weight"] = second.unflatten(1, grid).permute(0, 4, 2, 3, 1).flatten(2)
    made["decoder.linears.1.bias"] = made["decoder.linears.1.bias"].unflatten(1, grid).permute(0, 2, 3, 1).flatten(1)
    return made


def encode(images: torch.Tensor, weights: Weights) -> Encoded:
    """Encode images.

    Args:
        images: Shape ``(R, B, 64, 64)``, pixels from 0 to 1, of the working data type.
        weights: As from :func:`prepare`.

    Returns:
        The posteriors, and what lies on the way to them.
    """
    names = [f"encoder.convolutions.{index}" for index in range(len(LAYERS))]
    signal = F.relu(convolve_one_channel(images, weights[f"{names[0]}.weight"], weights[f"{names[0]}.bias"]))
    activations = [signal]
    for name in names[1:]:
        signal = rectify(convolve(signal, weights[f"{name}.weight"]), weights[f"{name}.bias"])
        activations.append(signal)
    hidden = F.relu(_affine(signal.flatten(2), weights["encoder.hidden.weight"], weights["encoder.hidden.bias"]))
    posterior = weights["encoder.posterior.weight"]
    parameters = _affine(hidden.to(posterior.dtype), posterior.mT, weights["encoder.posterior.bias"])
    mean, log_variance = parameters.chunk(2, 2)
    return Encoded(mean, log_variance, tuple(activations), hidden)


def decode(latents: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Decode latents ``(R, B, d)`` to logits ``(R, B, 64, 64)``, in single precision."""
    first, second = (f"decoder.linears.{index}" for index in range(2))
    hidden = F.relu(_affine(latents, weights[f"{first}.weight"].mT, weights[f"{first}.bias"]))
    matrix = weights[f"{second}.weight"]
    signal = F.relu(_affine(hidden.to(matrix.dtype), matrix, weights[f"{second}.bias"]))
    signal = signal.unflatten(2, (SMALLEST, SMALLEST, CHANNELS[-1]))
    *inner, last = (f"decoder.convolutions.{index}" for index in range(len(CHANNELS) - 1))
    for name in inner:
        signal = rectify(transposed(signal, weights[f"{name}.weight"]), weights[f"{name}.bias"])
    return transposed_to_one_channel(signal, weights[f"{last}.weight"], weights[f"{last}.bias"])


def mean_adjoint(slope: torch.Tensor, encoded: Encoded, layer: str, weights: Weights) -> torch.Tensor:
    """Carry the gradient of every latent back to a layer, and average it over the places: Liu et al., eq. 1's alpha.

    The latents explained are ``mu_i + s_i(log sigma_i^2)``. As :meth:`..networks.Encoder.mean_adjoint`, it is made of
    ordinary operations on the weights, to be differentiated once more.

    Args:
        slope: Derivative of each latent by its log variance, 0 for the mean alone, shape ``(R, B, d)``.
        encoded: What :func:`encode` made of the images.
        layer: One of :data:`~..networks.LAYERS`.
        weights: As from :func:`prepare`.

    Returns:
        Shape ``(R, B, d, C)``.
    """
    runs, batch, latents = slope.shape
    by_mean, by_log_variance = weights["encoder.posterior.weight"][:, None].chunk(2, 2)
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
            return mean_of_transposed(signal, weight).unflatten(1, (batch, latents))
        signal = transposed(signal, weight)
    return signal.mean((2, 3)).unflatten(1, (batch, latents))


def _affine(signal: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Multiply ``(R, B, C)`` by each run's matrix ``(R, C, D)``, and add its bias ``(R, D)``."""
    return torch.baddbmm(bias[:, None], signal, matrix)

"""The losses of :mod:`..models`, :mod:`..discriminator` and :mod:`..attention_loss` for several runs at once."""

from collections.abc import Mapping

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.dsprites.attention_loss import ACTIVE_KL, AttentionDisentanglement
from anomalib_vae_attention.dsprites.discriminator import DEPTH, NEGATIVE_SLOPE, DensityRatio
from anomalib_vae_attention.dsprites.networks import LAYERS

from .layout import Weights
from .networks import Encoded, mean_adjoint


def choose_pairs(attention: AttentionDisentanglement, divergence: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Weigh the pairs of latents as :meth:`..attention_loss.AttentionDisentanglement.choose` chooses them.

    Args:
        attention: What to choose.
        divergence: Each latent's KL divergence from the prior, averaged over the batch, in nats, shape ``(R, d)``.
        uniform: Random numbers from 0 to 1 for ``random`` pairs, shape ``(R, d)``: the two greatest are the pair.

    Returns:
        Weights of the pairs above the diagonal, which add up to 1, or 0 where there is no pair, shape ``(R, d, d)``.
    """
    if attention.pairs == "all":
        chosen = (divergence >= ACTIVE_KL).to(divergence.dtype)
    else:
        best = (uniform if attention.pairs == "random" else divergence).topk(2, 1).indices
        chosen = torch.zeros_like(divergence).scatter(1, best, 1.0)
    pairs = (chosen[:, :, None] * chosen[:, None]).triu(1)
    return pairs / pairs.sum((1, 2), keepdim=True).clamp_min(1)


def overlap(
    attention: AttentionDisentanglement,
    weights: Weights,
    encoded: Encoded,
    noise: torch.Tensor,
    pairs: torch.Tensor,
) -> torch.Tensor:
    """Compute Liu et al.'s ``L_AD`` (CVPR 2020, eq. 5) of each run, without ``lambda``.

    ``2 sum min(a, b)`` is ``sum (a + b) - sum |a - b|``, whose gradient takes fewer passes.

    Args:
        attention: What is explained and compared; its ``weight`` is not used.
        weights: As for :func:`.networks.encode`.
        encoded: What the encoders made of the images.
        noise: The noise with which the latents were sampled, shape ``(R, B, d)``.
        pairs: Weights of the pairs, as from :func:`choose_pairs`.

    Returns:
        From 0 to 1, shape ``(R,)``.
    """
    sampled = 0.5 * noise * (0.5 * encoded.log_variance).exp()
    slope = sampled if attention.score == "sample" else torch.zeros_like(noise)
    alpha = mean_adjoint(slope, encoded, attention.layer, weights)
    alpha = alpha if attention.second_order else alpha.detach()
    activations = encoded.activations[LAYERS.index(attention.layer)].flatten(2, 3)
    maps = torch.matmul(alpha.to(activations.dtype), activations.mT).to(noise.dtype)
    maps = maps.abs() if attention.both_signs else maps.relu()
    if attention.normalise:
        greatest = maps.amax(-1, keepdim=True)
        maps = maps / torch.where(greatest > 0, greatest, 1)
    sums = maps.sum(-1)
    total = sums[..., :, None] + sums[..., None, :]
    apart = (maps[..., :, None, :] - maps[..., None, :, :]).abs().sum(-1)
    shared = (total - apart) / torch.where(total > 0, total, 1)
    return (shared.mean(1) * pairs).sum((1, 2))


@torch.no_grad()
def density_ratio(
    parameters: Weights, latents: torch.Tensor, permuted: torch.Tensor
) -> tuple[DensityRatio, Mapping[str, torch.Tensor]]:
    """Estimate each run's total correlation, and compute the gradients of the discriminator's own loss.

    The equations are those of :meth:`..discriminator.Discriminator.estimate`.

    Args:
        parameters: The discriminators' weights, named as ``layers.0.weight``.
        latents: Latents ``z`` of q(z), shape ``(R, B, d)``.
        permuted: Latents permuted over the batch, of the same shape.

    Returns:
        Estimate and loss, of shape ``(R,)``, with the estimate's gradient by the latents ``(R, B, d)``; and the
        gradients by the parameters, by name.
    """
    half = latents.shape[1]
    inputs = [torch.cat([latents, permuted], 1)]
    for index in range(DEPTH):
        weight, bias = (parameters[f"layers.{index}.{kind}"] for kind in ("weight", "bias"))
        inputs.append(F.leaky_relu_(torch.baddbmm(bias[:, None], inputs[-1], weight.mT), NEGATIVE_SLOPE))
    last_weight, last_bias = (parameters[f"layers.{DEPTH}.{kind}"] for kind in ("weight", "bias"))
    direction = last_weight[:, 0] - last_weight[:, 1]
    outputs = inputs[-1]
    difference = torch.bmm(outputs, direction[..., None])[..., 0] + (last_bias[:, :1] - last_bias[:, 1:])
    own, other = difference[:, :half], difference[:, half:]
    by_difference = torch.cat([-torch.sigmoid(-own), torch.sigmoid(other)], 1) / (2 * half)
    loss = 0.5 * (F.softplus(-own).mean(1) + F.softplus(other).mean(1))
    row, total = torch.bmm(by_difference[:, None], outputs), by_difference.sum(1, keepdim=True)
    gradients = {
        f"layers.{DEPTH}.weight": torch.cat([row, -row], 1),
        f"layers.{DEPTH}.bias": torch.cat([total, -total], 1),
    }
    signal = direction[:, None].expand_as(outputs)
    for index in range(DEPTH - 1, -1, -1):
        # From its output (True): a LeakyReLU keeps the sign.
        signal = torch.ops.aten.leaky_relu_backward(signal, inputs[index + 1], NEGATIVE_SLOPE, True)  # noqa: FBT003
        gradients[f"layers.{index}.weight"] = torch.bmm(signal.mT, by_difference[..., None] * inputs[index])
        gradients[f"layers.{index}.bias"] = torch.bmm(by_difference[:, None], signal)[:, 0]
        signal = torch.bmm(signal if index else signal[:, :half], parameters[f"layers.{index}.weight"])
    return DensityRatio(own.mean(1), signal / half, loss), gradients

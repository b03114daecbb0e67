"""FactorVAE's density-ratio discriminator, with the gradients of both of its losses from one backward pass."""

from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

NEGATIVE_SLOPE = 0.2
WIDTH, DEPTH = 1000, 6


class DensityRatio(NamedTuple):
    """What one pass through the discriminator gives.

    Attributes:
        total_correlation: Its estimate, in nats, a scalar.
        gradient: Gradient of the estimate by the latents, of shape ``(B, d)``.
        loss: The discriminator's own loss, in nats, a scalar.
    """

    total_correlation: torch.Tensor
    gradient: torch.Tensor
    loss: torch.Tensor


class Discriminator(nn.Module):
    """Tells latents of q(z) from latents permuted over the batch: 6 layers of 1000, LeakyReLU, two logits.

    Kim and Mnih ("Disentangling by Factorising", ICML 2018, section 3 and appendix A).

    Args:
        latent_dim: Number of latents ``d``.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        widths = [latent_dim, *[WIDTH] * DEPTH, 2]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, 2)``, of q(z) and of the product of its marginals, for latents ``(B, d)``."""
        for layer in self.layers[:-1]:
            latents = F.leaky_relu(layer(latents), NEGATIVE_SLOPE)
        return self.layers[-1](latents)

    @torch.no_grad()
    def estimate(self, latents: torch.Tensor, permuted: torch.Tensor) -> DensityRatio:
        """Estimate the total correlation and set the gradients of the discriminator's own loss.

        With the difference ``s`` of the two logits, the total correlation is the mean of ``s(z)`` (Kim and Mnih, eq.
        3), and the loss, the cross-entropy of telling apart as many latents as permuted ones, is half the mean of
        ``softplus(-s(z)) + softplus(s(permuted))``. Both depend on the parameters through ``s`` only, so ``ds/da`` is
        carried back once through all layers, and a factor for each latent turns it into either gradient. Autograd would
        do one more backward pass on ``z``, and give the total correlation's gradient by the discriminator's weights,
        which nobody needs.

        Args:
            latents: Latents ``z`` of q(z), shape ``(B, d)``.
            permuted: Latents permuted over the batch, shape ``(B, d)``.

        Returns:
            The estimate with its gradient, and the loss; the parameters' gradients are in their ``grad``.
        """
        half = len(latents)
        *inner, last = cast("list[nn.Linear]", list(self.layers))
        device = latents.device.type
        working = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else latents.dtype
        # What reads or writes latents is small, and stays in full precision.
        weights = [layer.weight if layer is inner[0] else layer.weight.to(working) for layer in inner]
        inputs = [torch.cat([latents, permuted])]
        direction = last.weight[0] - last.weight[1]
        with torch.autocast(device, enabled=False):
            for layer, weight in zip(inner, weights, strict=True):
                output = F.linear(inputs[-1].to(weight.dtype), weight, layer.bias.to(weight.dtype))
                inputs.append(F.leaky_relu_(output, NEGATIVE_SLOPE))
            outputs = inputs[-1].to(direction.dtype)
            difference = outputs @ direction + (last.bias[0] - last.bias[1])
            own, other = difference[:half], difference[half:]
            by_difference = torch.cat([-torch.sigmoid(-own), torch.sigmoid(other)]) / (2 * half)
            loss = 0.5 * (F.softplus(-own).mean() + F.softplus(other).mean())
            row, total = by_difference @ outputs, by_difference.sum()
            last.weight.grad, last.bias.grad = torch.stack([row, -row]), torch.stack([total, -total])
            signal = direction.expand_as(outputs)
            for layer, weight, output, before in zip(
                inner[::-1], weights[::-1], inputs[:0:-1], inputs[-2::-1], strict=True
            ):
                # From its output (True): a LeakyReLU keeps the sign. Several times as fast as torch.where.
                signal = torch.ops.aten.leaky_relu_backward(signal.to(output.dtype), output, NEGATIVE_SLOPE, True)  # noqa: FBT003
                weighted = (by_difference[:, None] * before).to(weight.dtype)
                layer.weight.grad = (signal.T @ weighted).to(layer.weight.dtype)
                layer.bias.grad = by_difference @ signal.to(by_difference.dtype)
                signal = (signal if layer is not inner[0] else signal[:half]) @ weight
        return DensityRatio(own.mean(), signal / half, loss)


def permute(latents: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Permute each of the latents ``(B, d)`` over the batch, independently of the others.

    The result is a sample of the product of the marginals (Kim and Mnih, algorithm 1).

    Raises:
        ValueError: If the batch has fewer than two images, which no permutation can tell apart.
    """
    if len(latents) < 2:
        msg = (
            f"FactorVAE permutes latents over the batch, which has {len(latents)} image; batch_size must be at least 2"
        )
        raise ValueError(msg)
    order = torch.rand(latents.shape, generator=generator).argsort(0)
    return latents.gather(0, order.to(latents.device))

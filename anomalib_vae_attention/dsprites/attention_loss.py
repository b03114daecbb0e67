"""Attention disentanglement: a loss that keeps two latents from looking at the same place."""

from itertools import combinations
from typing import Literal

import torch
from torch import nn

from anomalib_vae_attention.attention import weighted_attention
from anomalib_vae_attention.common.argument_checks import require_choice, require_number, require_whole
from anomalib_vae_attention.image_vae.elbo import kl_by_latent

from .networks import LAYERS, Encoded, Encoder

PAIRS = ("random", "all", "top2")
EXPLAINED = ("sample", "mean")
ACTIVE_KL = 0.01
"""Least KL divergence from the prior, in nats, averaged over the batch, of a latent that counts as active."""


def overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Measure how far two attention maps overlap: Liu et al. (CVPR 2020), eq. 5.

    ``L_AD = 2 sum_ij min(A1_ij, A2_ij) / sum_ij (A1_ij + A2_ij)``: 0 for maps that share no place, or are 0 everywhere,
    and 1 for equal ones. From maps ``(..., h, w)``, not negative, to shape ``(...)``.
    """
    total = (first + second).sum((-2, -1))
    shared = 2 * torch.minimum(first, second).sum((-2, -1))
    return shared / torch.where(total > 0, total, 1)


class AttentionDisentanglement(nn.Module):
    """Liu et al.'s loss ``lambda L_AD`` (eq. 5), to be added to that of any of the models.

    The maps come from the gradient of the sampled ``z_i = mu_i + sigma_i eps_i`` by a layer's activations (eq. 1), or
    of ``mu_i`` alone. The loss reaches the encoder through the activations and through the gradient weights
    ``alpha``. How the paper chooses the two latents is not known, nor is the layer.

    As printed, the loss has a trivial minimum: where a map is 0 everywhere, it overlaps with no other, and gets no
    gradient. ``both_signs`` and ``normalise`` together leave only maps that really lie apart.

    Args:
        weight: ``lambda``, not negative.
        pairs: ``random``, two distinct latents for each batch; ``all``, the mean over all pairs of active latents; or
            ``top2``, the two latents of greatest KL divergence. A latent is active if its KL divergence, averaged over
            the batch, is at least 0.01 nats.
        layer: Whose activations: ``conv1`` (32x32 pixels), ``conv2`` (16x16), ``conv3`` (8x8) or ``conv4`` (4x4).
        score: What is explained, the ``sample`` z or the ``mean``.
        normalise: Divide each map by its maximum before comparing.
        both_signs: Take the absolute value in place of the ReLU of eq. 2, so that no map can vanish by its sign.
        second_order: Let the loss reach the weights through ``alpha`` too; otherwise ``alpha`` is a constant.
        warmup_steps: Optimiser steps over which ``lambda`` rises linearly from 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        weight: float = 1.0,
        pairs: Literal["random", "all", "top2"] = "random",
        layer: Literal["conv1", "conv2", "conv3", "conv4"] = "conv4",
        score: Literal["sample", "mean"] = "sample",
        normalise: bool = False,
        both_signs: bool = False,
        second_order: bool = True,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        require_number("weight", weight, least=0)
        require_choice("pairs", pairs, PAIRS)
        require_choice("layer", layer, LAYERS)
        require_choice("score", score, EXPLAINED)
        require_whole("warmup_steps", warmup_steps, least=0)
        self.weight, self.pairs, self.layer, self.score = weight, pairs, layer, score
        self.normalise, self.both_signs = normalise, both_signs
        self.second_order, self.warmup_steps = second_order, warmup_steps

    def weight_at(self, step: int) -> float:
        """Return ``lambda`` after a number of optimiser steps."""
        return self.weight * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.weight

    @torch.no_grad()
    def choose(self, encoded: Encoded, generator: torch.Generator | None = None) -> list[tuple[int, int]]:
        """Choose pairs of distinct latents; none if ``pairs`` is ``all`` and fewer than two are active."""
        if self.pairs == "random":
            chosen = torch.randperm(encoded.mean.shape[1], generator=generator)[:2]
        else:
            divergence = kl_by_latent(encoded.mean, encoded.log_variance).mean(0)
            active = (divergence >= ACTIVE_KL).nonzero().flatten()
            chosen = active if self.pairs == "all" else divergence.topk(2).indices
        return list(combinations(chosen.tolist(), 2))

    def maps(self, encoder: Encoder, encoded: Encoded, noise: torch.Tensor, latents: list[int]) -> torch.Tensor:
        """Compute the attention maps of ``P`` latents of what an encoder has encoded.

        The noise ``eps`` is that with which ``z`` was sampled, of shape ``(B, d)``. Maps are of shape ``(B, P, h, w)``,
        not negative.
        """
        by_parameters = torch.zeros(len(noise), len(latents), 2, noise.shape[1], dtype=noise.dtype, device=noise.device)
        rows = torch.arange(len(latents))
        by_parameters[:, rows, 0, latents] = 1
        if self.score == "sample":
            by_parameters[:, rows, 1, latents] = (0.5 * noise * (0.5 * encoded.log_variance).exp())[:, latents]
        alpha = encoder.by_activations(by_parameters.flatten(2), encoded, self.layer).mean((-2, -1))
        alpha = alpha if self.second_order else alpha.detach()
        maps = weighted_attention(encoded.activations(self.layer), alpha, both_signs=self.both_signs)
        maps = maps.to(encoded.mean.dtype)
        if self.normalise:
            greatest = maps.amax((-2, -1), keepdim=True)
            maps = maps / torch.where(greatest > 0, greatest, 1)
        return maps

    def forward(
        self, encoder: Encoder, encoded: Encoded, noise: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Compute ``L_AD``, without ``lambda``, of what :meth:`maps` takes; ``generator`` draws ``random`` pairs.

        Returns:
            The mean overlap over pairs and images, a scalar from 0 to 1; 0 if there is no pair.
        """
        pairs = self.choose(encoded, generator)
        if not pairs:
            return encoded.mean.new_zeros(())
        latents = sorted({latent for pair in pairs for latent in pair})
        maps = self.maps(encoder, encoded, noise, latents)
        first, second = ([latents.index(pair[side]) for pair in pairs] for side in range(2))
        return overlap(maps[:, first], maps[:, second]).mean()

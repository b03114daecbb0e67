"""Batches and random numbers of several runs, drawn on the device that trains them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from anomalib_vae_attention.dsprites.drawing import SIZE


class Draws(NamedTuple):
    """Random numbers of one step, or with one more dimension in front, of several.

    Attributes:
        indices: Which images, shape ``(R, B)``.
        noise: With which latents are sampled, shape ``(R, B, d)``.
        order: Permutation of each latent over the batch, shape ``(R, B, d)``.
        uniform: For random pairs of latents, shape ``(R, d)``.
    """

    indices: torch.Tensor
    noise: torch.Tensor
    order: torch.Tensor
    uniform: torch.Tensor


def empty_draws(shape: tuple[int, int, int, int], device: torch.device) -> Draws:
    """Make room for the draws of several steps, of shape steps, runs, images, latents."""
    steps, runs, _, latents = shape
    return Draws(
        torch.empty(shape[:3], dtype=torch.int64, device=device),
        torch.empty(shape, device=device),
        torch.empty(shape, dtype=torch.int64, device=device),
        torch.empty(steps, runs, latents, device=device),
    )


def draw(draws: Draws, generators: Sequence[torch.Generator], images: int) -> None:
    """Draw the random numbers of several steps in place, each run's from its own generator.

    Args:
        draws: As from :func:`empty_draws`.
        generators: One for each run.
        images: How many images there are to draw from.
    """
    for run, generator in enumerate(generators):
        draws.indices[:, run] = torch.randint(
            images, draws.indices[:, run].shape, generator=generator, device=draws.indices.device
        )
        noise = draws.noise[:, run]
        draws.noise[:, run] = torch.randn(noise.shape, generator=generator, device=noise.device)
        draws.order[:, run] = torch.rand(noise.shape, generator=generator, device=noise.device).argsort(1)
        uniform = draws.uniform[:, run]
        draws.uniform[:, run] = torch.rand(uniform.shape, generator=generator, device=uniform.device)


def unpack(bits: torch.Tensor) -> torch.Tensor:
    """Unpack images ``(..., 512)`` of bits to pixels 0 and 1, float32, shape ``(..., 64, 64)``."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return (bits[..., None] >> places & 1).to(torch.float32).view(*bits.shape[:-1], SIZE, SIZE)

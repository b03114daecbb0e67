"""The variance of single latents that a factor explains: is there a latent for it at all?"""

import numpy as np
import torch

from .sampling import Encode, FactorData, Sample, active_latents, draw_sample


def explained_variance(data: FactorData, encode: Encode, samples: int = 10_000, seed: int = 0) -> dict[str, float]:
    """Find for each factor the latent of which it explains the greatest share of the variance.

    The share is Pearson's correlation ratio: the variance of the latent's means given the factor's value, over that
    of the latent.

    Args:
        data: The data set.
        encode: The encoder.
        samples: Number of images.
        seed: Seed of all draws.

    Returns:
        ``explained_`` with each factor's name, from 0 to 1; 0 if all latents are collapsed.
    """
    shares = explained_of(draw_sample(data, encode, samples, torch.Generator().manual_seed(seed)))
    return {f"explained_{name}": share for name, share in zip(data.factors, shares, strict=True)}


def explained_of(sample: Sample) -> list[float]:
    """Compute the greatest share of each factor from codes and factors; collapsed latents have none."""
    codes, factors = sample
    codes = codes[:, active_latents(codes)]
    if not codes.shape[1]:
        return [0.0] * factors.shape[1]
    shares = []
    for values in factors.T:
        counts = np.bincount(values)
        sums = np.stack([np.bincount(values, latent) for latent in codes.T])
        means = sums / np.maximum(counts, 1)
        between = (counts * (means - codes.mean(0)[:, None]) ** 2).sum(1) / len(codes)
        shares.append(min(1.0, float((between / codes.var(0)).max())))
    return shares

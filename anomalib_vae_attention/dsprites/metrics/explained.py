"""The variance of single latents that a factor explains: is there a latent for it at all?"""

from collections.abc import Sequence

import numpy as np

from .sampling import Sample, active_latents


def explained_variance(sample: Sample, names: Sequence[str]) -> dict[str, float]:
    """Find for each factor the latent of which it explains the greatest share of the variance.

    The share is Pearson's correlation ratio: the variance of the latent's means given the factor's value, over that
    of the latent.

    Args:
        sample: Codes and factors.
        names: The factors' names.

    Returns:
        ``explained_`` with each factor's name, from 0 to 1; 0 if all latents are collapsed.
    """
    codes, factors = sample
    codes = codes[:, active_latents(codes)]
    shares = dict.fromkeys([f"explained_{name}" for name in names], 0.0)
    for name, values in zip(shares, factors.T if codes.shape[1] else [], strict=False):
        counts = np.bincount(values)
        sums = np.stack([np.bincount(values, latent) for latent in codes.T])
        means = sums / np.maximum(counts, 1)
        between = (counts * (means - codes.mean(0)[:, None]) ** 2).sum(1) / len(codes)
        shares[name] = min(1.0, float((between / codes.var(0)).max()))
    return shares

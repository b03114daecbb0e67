"""The beta-VAE score: can a linear classifier tell which factor two images share?"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from .sampling import Encode, FactorData, active_latents, draw_sample, encode_factors

VARIANCE_SAMPLES = 10_000


def beta_vae_score(
    data: FactorData, encode: Encode, pairs: int = 64, train: int = 500, test: int = 250, seed: int = 0
) -> dict[str, float]:
    """Compute the beta-VAE score of an encoder.

    Higgins et al. ("beta-VAE", ICLR 2017, section 3): draw pairs of images that share the value of one factor; the mean
    absolute difference of their codes over ``pairs`` pairs is one point, to be classified by the factor shared. The
    linear classifier is a logistic regression on standardised differences, of ``train`` points to learn from and
    ``test`` more. Collapsed latents don't take part. Locatello et al. (ICML 2019) use 10,000 and 5,000 points.

    Returns:
        ``beta_vae_score``, the test accuracy from 0 to 1 (chance is 1 / K); if all latents are collapsed, 1 / K.
    """
    generator = torch.Generator().manual_seed(seed)
    active = active_latents(draw_sample(data, encode, VARIANCE_SAMPLES, generator).codes)
    kinds = len(data.factor_sizes)
    if not len(active):
        return {"beta_vae_score": 1 / kinds}
    # Every factor the same number of times, so that all are there however few points are asked for.
    held = np.arange(train + test) % kinds
    points = np.empty((train + test, len(active)))
    for row, factor in enumerate(held):
        first, second = (data.sample_factors(pairs, generator) for _ in range(2))
        second[:, factor] = first[:, factor]
        codes = encode_factors(data, encode, torch.cat([first, second]))[:, active]
        points[row] = np.abs(codes[:pairs] - codes[pairs:]).mean(0)
    spread = points[:train].std(0)
    points = (points - points[:train].mean(0)) / np.where(spread > 0, spread, 1)
    classifier = LogisticRegression(max_iter=1000).fit(points[:train], held[:train])
    return {"beta_vae_score": float(classifier.score(points[train:], held[train:]))}

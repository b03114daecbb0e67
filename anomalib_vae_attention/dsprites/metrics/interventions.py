"""The FactorVAE and the beta-VAE score: does a factor that is held show in the codes?"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .sampling import COLLAPSED_STD, Encode, FactorData, active_latents, draw_sample, encode_factors

VARIANCE_SAMPLES, VOTE_SAMPLES, PAIRS = 10_000, 100, 64
STRICT_STD = 0.2
"""A second limit for collapsed latents: those of a small deviation can win votes without telling much."""


def factor_vae_score(data: FactorData, encode: Encode, votes: int = 800, seed: int = 0) -> dict[str, float]:
    """Compute the FactorVAE score of an encoder.

    Kim and Mnih ("Disentangling by Factorising", ICML 2018, section 4): hold one factor at a random value, draw 100
    images with the others at random, divide the codes by their standard deviation over the data, and let the latent of
    least variance vote for the factor. The score is the accuracy, on these very votes, of the classifier that answers
    each latent with the factor it got most votes from. Collapsed latents don't take part. (Locatello et al., ICML 2019,
    draw 64 images, and test on other votes than those that make the classifier.)

    The standard deviation is over 10,000 images drawn at random. The constant colour of dSprites is not a factor; with
    it, scores would be other.

    Returns:
        ``factor_vae_score`` from 0 to 1, and ``active_latents``. Chance is the share of the most frequent factor, about
        1 / K; if all latents are collapsed, the score is 0. Both again with ``_strict``, where a latent counts as
        collapsed below a deviation of 0.2 instead of 0.05.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = draw_sample(data, encode, VARIANCE_SAMPLES, generator).codes
    limits = {"": COLLAPSED_STD, "_strict": STRICT_STD}
    active = {suffix: active_latents(codes, limit) for suffix, limit in limits.items()}
    spread = np.where(codes.std(0) > 0, codes.std(0), 1)
    counts = {suffix: np.zeros((codes.shape[1], len(data.factor_sizes)), np.int64) for suffix in limits}
    for _ in range(votes if len(active[""]) else 0):
        held = int(torch.randint(len(data.factor_sizes), (), generator=generator))
        factors = data.sample_factors(VOTE_SAMPLES, generator)
        factors[:, held] = factors[0, held]
        variance = (encode_factors(data, encode, factors) / spread).var(0)
        for suffix, latents in active.items():
            if len(latents):
                counts[suffix][latents[variance[latents].argmin()], held] += 1
    scores = {}
    for suffix, by_latent in counts.items():
        scores[f"factor_vae_score{suffix}"] = float(by_latent.max(1).sum() / max(1, by_latent.sum()))
        scores[f"active_latents{suffix}"] = float(len(active[suffix]))
    return scores


def beta_vae_score(
    data: FactorData, encode: Encode, train: int = 500, test: int = 250, seed: int = 0
) -> dict[str, float]:
    """Compute the beta-VAE score of an encoder.

    Higgins et al. ("beta-VAE", ICLR 2017, section 3): draw pairs of images that share the value of one factor; the mean
    absolute difference of their codes over 64 pairs is one point, to be classified by the factor shared. The
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
        first, second = (data.sample_factors(PAIRS, generator) for _ in range(2))
        second[:, factor] = first[:, factor]
        codes = encode_factors(data, encode, torch.cat([first, second]))[:, active]
        points[row] = np.abs(codes[:PAIRS] - codes[PAIRS:]).mean(0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(points[:train], held[:train])
    return {"beta_vae_score": float(classifier.score(points[train:], held[train:]))}

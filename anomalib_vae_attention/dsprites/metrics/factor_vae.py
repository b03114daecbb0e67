"""The FactorVAE score: does one latent vary least when one factor is held?"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .sampling import COLLAPSED_STD, Encode, FactorData, active_latents, draw_sample, encode_factors

VARIANCE_SAMPLES = 10_000

STRICT_STD = 0.2
"""A second limit for collapsed latents: those of a small deviation can win votes without telling much."""


def factor_vae_score(
    data: FactorData,
    encode: Encode,
    convention: Literal["kim_mnih", "disentanglement_lib"] = "kim_mnih",
    votes: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Compute the FactorVAE score of an encoder.

    Kim and Mnih ("Disentangling by Factorising", ICML 2018, section 4): hold one factor at a random value, draw ``L``
    images with the others at random, divide the codes by their standard deviation over the data, and let the latent of
    least variance vote for the factor. The score is the accuracy of the classifier that answers each latent with the
    factor it got most votes from. Collapsed latents don't take part.

    - ``kim_mnih``: ``L`` = 100, 800 votes, accuracy on the very votes that made the classifier.
    - ``disentanglement_lib`` (Locatello et al., ICML 2019): ``L`` = 64, 10,000 votes make the classifier, half as many
      more test it.

    The standard deviation is over 10,000 images drawn at random. The constant colour of dSprites is not a factor; with
    it, scores would be other.

    Args:
        data: The data set.
        encode: The encoder.
        convention: Which numbers to use.
        votes: Number of votes that make the classifier; the convention's by default.
        seed: Seed of all draws.

    Returns:
        ``factor_vae_score`` from 0 to 1 (chance is the share of the most frequent factor, about 1 / K), 0 if all
        latents are collapsed, and ``active_latents``; both again with ``_strict``, where a latent counts as collapsed
        below a deviation of 0.2 instead of 0.05.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = draw_sample(data, encode, VARIANCE_SAMPLES, generator).codes
    limits = {"": COLLAPSED_STD, "_strict": STRICT_STD}
    active = {suffix: active_latents(codes, limit) for suffix, limit in limits.items()}
    spread = np.where(codes.std(0) > 0, codes.std(0), 1)
    samples, default = (100, 800) if convention == "kim_mnih" else (64, 10_000)
    train = votes or default
    total = train if convention == "kim_mnih" else train + train // 2
    tables = {suffix: np.zeros((2, codes.shape[1], len(data.factor_sizes)), np.int64) for suffix in limits}
    for vote in range(total if len(active[""]) else 0):
        held = int(torch.randint(len(data.factor_sizes), (), generator=generator))
        factors = data.sample_factors(samples, generator)
        factors[:, held] = factors[0, held]
        variance = (encode_factors(data, encode, factors) / spread).var(0)
        for suffix, latents in active.items():
            if len(latents):
                tables[suffix][int(vote >= train), latents[variance[latents].argmin()], held] += 1
    scores = {}
    for suffix, (made_of, tested_on) in tables.items():
        score = majority_accuracy(made_of, made_of if convention == "kim_mnih" else tested_on)
        scores[f"factor_vae_score{suffix}"] = score
        scores[f"active_latents{suffix}"] = float(len(active[suffix]))
    return scores


def majority_accuracy(made_of: NDArray[np.int64], tested_on: NDArray[np.int64]) -> float:
    """Return the accuracy on some votes of the majority classifier made of others.

    Args:
        made_of: Counts of votes by latent and factor, shape ``(d, K)``.
        tested_on: Counts of other votes, or the same.

    Returns:
        From 0 to 1; 0 if there are no votes.
    """
    right = tested_on[np.arange(len(made_of)), made_of.argmax(1)].sum()
    return float(right / max(1, tested_on.sum()))

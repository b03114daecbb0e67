"""The FactorVAE score: does one latent vary least when one factor is held?"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .sampling import Encode, FactorData, active_latents, draw_sample, encode_factors

VARIANCE_SAMPLES = 10_000


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
        latents are collapsed, and ``active_latents``.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = draw_sample(data, encode, VARIANCE_SAMPLES, generator).codes
    active = active_latents(codes)
    if not len(active):
        return {"factor_vae_score": 0.0, "active_latents": 0.0}
    spread = codes.std(0)[active]
    samples, default = (100, 800) if convention == "kim_mnih" else (64, 10_000)
    train = votes or default
    total = train if convention == "kim_mnih" else train + train // 2
    table = np.zeros((2, len(active), len(data.factor_sizes)), np.int64)
    for vote in range(total):
        held = int(torch.randint(len(data.factor_sizes), (), generator=generator))
        factors = data.sample_factors(samples, generator)
        factors[:, held] = factors[0, held]
        variance = (encode_factors(data, encode, factors)[:, active] / spread).var(0)
        table[int(vote >= train), variance.argmin(), held] += 1
    score = majority_accuracy(table[0], table[0] if convention == "kim_mnih" else table[1])
    return {"factor_vae_score": score, "active_latents": float(len(active))}


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

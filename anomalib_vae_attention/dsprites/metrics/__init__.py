"""Disentanglement metrics: pure functions of an encoder and a data set with known factors, deterministic by seed.

The FactorVAE and beta-VAE scores choose the factors of their images, and take encoder and data. The others take
samples: codes of images drawn at random, with the factors behind them.
"""

import torch

from .dci import disentanglement_completeness_informativeness
from .interventions import beta_vae_score, factor_vae_score
from .sampling import Encode, FactorData, Sample, draw_sample
from .single_latents import explained_variance, mutual_information_gap, separated_attribute_predictability

__all__ = [
    "Encode",
    "FactorData",
    "Sample",
    "all_metrics",
    "beta_vae_score",
    "disentanglement_completeness_informativeness",
    "explained_variance",
    "factor_vae_score",
    "mutual_information_gap",
    "quick_metrics",
    "separated_attribute_predictability",
]


def draw_samples(data: FactorData, encode: Encode, seed: int, *counts: int) -> list[Sample]:
    """Draw samples of so many images each, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return [draw_sample(data, encode, count, generator) for count in counts]


def quick_metrics(data: FactorData, encode: Encode, seed: int = 0) -> dict[str, float]:
    """Compute the metrics to follow during training: FactorVAE score, MIG, DCI by lasso (marked ``_lasso``)."""
    (sample,) = draw_samples(data, encode, seed, 10_000)
    seen, unseen = draw_samples(data, encode, seed, 5_000, 2_500)
    lasso = disentanglement_completeness_informativeness(seen, unseen, "lasso", seed)
    return {
        **factor_vae_score(data, encode, seed=seed),
        **mutual_information_gap(sample),
        **{f"{name}_lasso": value for name, value in lasso.items()},
    }


def all_metrics(data: FactorData, encode: Encode, seed: int = 0, boosting: bool = True) -> dict[str, float]:
    """Compute every metric: scores by name, from 0 to 1, and ``active_latents``.

    With ``boosting``, DCI is computed by boosted trees, too: a minute or two, where all others take seconds. It is made
    of 2,000 and 1,000 images, a fifth of what Locatello et al. (ICML 2019) take.
    """
    seen, unseen = draw_samples(data, encode, seed, 10_000, 5_000)
    scores = {
        **quick_metrics(data, encode, seed),
        **beta_vae_score(data, encode, seed=seed),
        **separated_attribute_predictability(seen, unseen),
        **explained_variance(seen, data.factors),
    }
    if boosting:
        seen, unseen = draw_samples(data, encode, seed, 2_000, 1_000)
        scores |= disentanglement_completeness_informativeness(seen, unseen, "boosting", seed)
    return scores

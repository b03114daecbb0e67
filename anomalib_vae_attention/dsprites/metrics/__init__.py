"""Disentanglement metrics: pure functions of an encoder and a data set with known factors, deterministic by seed.

Each takes the data set, the encoder, numbers of images or points, and the seed of all its draws.
"""

from .beta_vae import beta_vae_score
from .dci import disentanglement_completeness_informativeness
from .factor_vae import factor_vae_score
from .mig import mutual_information_gap
from .sampling import Encode, FactorData
from .sap import separated_attribute_predictability

__all__ = [
    "Encode",
    "FactorData",
    "all_metrics",
    "beta_vae_score",
    "disentanglement_completeness_informativeness",
    "factor_vae_score",
    "mutual_information_gap",
    "quick_metrics",
    "separated_attribute_predictability",
]


def quick_metrics(data: FactorData, encode: Encode, seed: int = 0) -> dict[str, float]:
    """Compute the metrics to follow during training: FactorVAE score, MIG, DCI by lasso.

    Returns:
        Scores by name, from 0 to 1, those of DCI marked ``_lasso``, and ``active_latents``.
    """
    lasso = disentanglement_completeness_informativeness(data, encode, "lasso", 5_000, 2_500, seed=seed)
    return {
        **factor_vae_score(data, encode, seed=seed),
        **mutual_information_gap(data, encode, seed=seed),
        **{f"{name}_lasso": value for name, value in lasso.items()},
    }


def all_metrics(data: FactorData, encode: Encode, seed: int = 0) -> dict[str, float]:
    """Compute every metric, with its default arguments.

    Args:
        data: The data set.
        encode: The encoder.
        seed: Seed of all draws.

    Returns:
        Scores by name, from 0 to 1, and ``active_latents``.
    """
    return {
        **quick_metrics(data, encode, seed),
        **beta_vae_score(data, encode, seed=seed),
        **separated_attribute_predictability(data, encode, seed=seed),
        **disentanglement_completeness_informativeness(data, encode, seed=seed),
    }

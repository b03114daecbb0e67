"""Which models can be stacked."""

from collections.abc import Sequence
from typing import NamedTuple

from anomalib_vae_attention.dsprites.models import BetaVAE, FactorVAE


class Structure(NamedTuple):
    """What models must have in common to be stacked: all but rates and weights of the loss's terms.

    Attributes:
        networks: Whether there is a discriminator, and the number of latents.
        attention: The kind of attention disentanglement; models without fit to any.
    """

    networks: tuple[bool, int]
    attention: tuple[str | bool, ...] | None


def structure(model: BetaVAE) -> Structure:
    """Return the structure of a model."""
    networks, attention = (isinstance(model, FactorVAE), model.latent_dim), model.attention
    if attention is None or attention.weight == 0:
        return Structure(networks, None)
    flags = attention.normalise, attention.both_signs, attention.second_order
    return Structure(networks, (attention.pairs, attention.layer, attention.score, *flags))


def fit_together(models: Sequence[BetaVAE]) -> bool:
    """Tell whether models can be stacked."""
    kinds = [structure(model) for model in models]
    attentions = {kind.attention for kind in kinds} - {None}
    return len({kind.networks for kind in kinds}) == 1 and len(attentions) <= 1


def settings(model: BetaVAE) -> str:
    """Say what a model's steps depend on beside weights and random numbers."""
    rates = ("learning_rate", "discriminator_learning_rate", "beta", "gamma")
    told = {name: getattr(model, name) for name in rates if hasattr(model, name)}
    if model.attention:
        told |= {"weight": model.attention.weight, "warmup_steps": model.attention.warmup_steps}
    return f"{structure(model)}, {told}"

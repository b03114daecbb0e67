"""The arguments of :class:`VaeAttention`: which VAEs each belongs to, and which values it may have."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .common.argument_checks import (
    optional,
    require_choice,
    require_number,
    require_texts,
    require_whole,
    require_wholes,
)
from .image_vae.attention_maps import ATTENTIONS
from .image_vae.elbo import LIKELIHOODS
from .image_vae.vae import IMAGE_VAES
from .reference import REFERENCES

FEATURE = ("feature",)
IMAGE = tuple(IMAGE_VAES)
ALL = (*FEATURE, *IMAGE)
LATENT_DIM = {"feature": 96, **dict.fromkeys(IMAGE, 32)}
"""What stands for ``latent_dim=None`` with each VAE."""

if TYPE_CHECKING:
    VaeName = str
    AttentionName = str
    ReferenceName = str
else:
    # The command line offers what the registries hold.
    VaeName, AttentionName, ReferenceName = Literal[ALL], Literal[tuple(ATTENTIONS)], Literal[tuple(REFERENCES)]


class Argument(NamedTuple):
    """An argument of :class:`VaeAttention`.

    Attributes:
        vaes: The VAEs that it belongs to. With others it has to keep its default.
        check: Takes name and value, and raises a ``ValueError`` that names it where the value is out of range.
    """

    vaes: tuple[str, ...]
    check: Callable[[str, Any], None]


def _choice(choices: Iterable[object]) -> Callable[[str, Any], None]:
    return partial(require_choice, choices=list(choices))


ARGUMENTS = {
    "vae": Argument(ALL, _choice(ALL)),
    "reference": Argument(ALL, _choice(REFERENCES)),
    "latent_dim": Argument(ALL, optional(partial(require_whole, least=1))),
    "max_exemplars": Argument(ALL, partial(require_whole, least=1)),
    "input_size": Argument(ALL, optional(partial(require_wholes, least=1, count=2))),
    "backbone": Argument(FEATURE, lambda name, value: require_texts(name, [value])),
    "layers": Argument(FEATURE, require_texts),
    "pre_trained": Argument(FEATURE, _choice([True, False])),
    "cache_features": Argument(FEATURE, _choice(["auto", True, False])),
    "attention": Argument(IMAGE, _choice(ATTENTIONS)),
    "attention_layers": Argument(IMAGE, optional(require_texts)),
    "channels": Argument(IMAGE, _choice([None, 1, 3])),
    "likelihood": Argument(IMAGE, _choice([None, *LIKELIHOODS])),
    "learning_rate": Argument(IMAGE, partial(require_number, above=0)),
    "kl_weight": Argument(IMAGE, partial(require_number, least=0)),
    "kl_warmup_steps": Argument(IMAGE, partial(require_whole, least=0)),
    "samples": Argument(IMAGE, partial(require_whole, least=1)),
    "seed": Argument(IMAGE, partial(require_whole, least=0)),
    "widths": Argument(("conv",), partial(require_wholes, least=1)),
    "hidden_dim": Argument(("conv",), partial(require_whole, least=1)),
}
"""All arguments but anomalib's own, by name."""


def without_effect(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """List the given arguments, ``vae`` among them, that another VAE would need and that are not at their defaults."""
    foreign = [name for name in given if name in ARGUMENTS and given["vae"] not in ARGUMENTS[name].vaes]
    return [name for name in foreign if _plain(given[name]) != _plain(defaults[name])]


def _plain(value: object) -> object:
    """Make sequences alike: config files have lists for tuples."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def check_arguments(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check the arguments of a model by their names; those that are not in :data:`ARGUMENTS` are left alone.

    Raises:
        ValueError: If one is out of range, or belongs to another VAE and is not at its default. The message names it.
    """
    for name, argument in ARGUMENTS.items():
        argument.check(name, given[name])
    for name in without_effect(given, defaults):
        owners = " or ".join(f"vae={owner!r}" for owner in ARGUMENTS[name].vaes)
        msg = f"{name}={given[name]!r} belongs to {owners}, and has no effect with vae={given['vae']!r}: leave it out."
        raise ValueError(msg)

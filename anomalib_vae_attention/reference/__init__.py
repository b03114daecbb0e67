"""Normal references: what the posteriors of normal images look like, and how far another posterior is from them.

All answer the same question, for eq. 4 of Liu et al. (CVPR 2020). Given the posterior of an image, which normal latent
is each cell compared with? How large is the difference over the variance of both? A new reference is a subclass of
:class:`NormalReference` in a file of its own, and a row of :data:`REFERENCES`.
"""

from collections.abc import Callable

from anomalib_vae_attention.common.argument_checks import require_choice, require_whole

from .base import LeftOut, Match, NormalReference, require_images
from .exemplar_choice import MAX_EXEMPLARS
from .exemplars import Exemplars
from .gaussian import Gaussian

__all__ = [
    "MAX_EXEMPLARS",
    "REFERENCES",
    "Exemplars",
    "Gaussian",
    "LeftOut",
    "Match",
    "NormalReference",
    "make_reference",
    "require_images",
]

REFERENCES: dict[str, Callable[[int], NormalReference]] = {
    "exemplars": Exemplars,
    "gaussian": lambda _: Gaussian(),
}
"""The references by name. Each is made from the most images that it may keep the posteriors of."""


def make_reference(name: str, max_exemplars: int) -> NormalReference:
    """Make a normal reference.

    Args:
        name: One of :data:`REFERENCES`.
        max_exemplars: Most normal images that the exemplars keep, at least 1.

    Returns:
        The reference, before it has collected anything.

    Raises:
        ValueError: If there is no such reference, or ``max_exemplars`` is less than 1.
    """
    require_choice("reference", name, list(REFERENCES))
    require_whole("max_exemplars", max_exemplars, least=1)
    return REFERENCES[name](max_exemplars)

"""The normal references by name."""

from anomalib_vae_attention.common.argument_checks import require_choice, require_whole

from .base import NormalReference
from .exemplars import Exemplars
from .gaussian import Gaussian


def make_reference(name: str, max_exemplars: int) -> NormalReference:
    """Make a normal reference.

    Args:
        name: ``"exemplars"`` or ``"gaussian"``.
        max_exemplars: Most normal images that the exemplars keep.

    Returns:
        The reference, before it has collected anything.

    Raises:
        ValueError: If there is no such reference, or ``max_exemplars`` is less than 1.
    """
    require_choice("reference", name, ["exemplars", "gaussian"])
    require_whole("max_exemplars", max_exemplars, least=1)
    return Gaussian() if name == "gaussian" else Exemplars(max_exemplars)

"""Where a model comes from: the versions and the training images that checkpoints and exports tell of."""

import contextlib
import hashlib
import logging
from pathlib import Path
from typing import Any

from packaging.version import Version

from anomalib_vae_attention.common.machine import versions

PACKAGE = "anomalib_vae_attention"
MADE_WITH = (PACKAGE, "anomalib", "timm", "torch")
"""Packages whose versions checkpoints and exports tell."""
PROVENANCE_KEY = "vae_attention_provenance"

logger = logging.getLogger(__name__)


def describe_training_set(dataset: Any) -> dict[str, Any]:  # noqa: ANN401
    """Describe a training set, so that it can be told from others.

    Args:
        dataset: One of anomalib's data sets, whose files are known, or any other with a length.

    Returns:
        ``images``, their number, and ``sha256`` over the names and sizes of their files, sorted; ``None`` where these
        are not known, as of a stream.
    """
    samples = getattr(dataset, "samples", None)
    if samples is None:
        return {"images": len(dataset) if hasattr(dataset, "__len__") else None, "sha256": None}
    files = sorted((Path(path).name, Path(path).stat().st_size) for path in samples["image_path"])
    content = "\n".join(f"{name} {size}" for name, size in files)
    return {"images": len(files), "sha256": hashlib.sha256(content.encode()).hexdigest()}


def warn_if_newer(what: str, made_with: str | None) -> None:
    """Warn of what a newer version of this package has made, where it is known which."""
    here = versions([PACKAGE])[PACKAGE]
    # A package that runs without being installed has no version.
    with contextlib.suppress(ValueError):
        if made_with is not None and Version(made_with) > Version(here):
            logger.warning(
                f"{what} was made by {PACKAGE} {made_with}, which is newer than the {here} that is installed: it may "
                "not load, or score otherwise. Install that version.",
            )

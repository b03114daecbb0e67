"""The link ``latest`` that anomalib keeps beside its runs: it leads to a run with a model, or is not there."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Trainer

from anomalib_vae_attention.common.folders import first_free

LATEST = "latest"
WITHOUT_TRAINING = "without_training"
"""Folder of tests and predictions where nothing has been trained."""

logger = logging.getLogger(__name__)


def without_link(create: Callable) -> Callable:
    """Wrap anomalib's ``create_versioned_dir``: what stands in the way of the link must not stop a training."""

    def call(root_dir: str | Path) -> Path:
        root = Path(root_dir).resolve()
        latest = root / LATEST
        if latest.is_dir() and not latest.is_symlink():
            latest.rename(first_free(latest))
        before = set(root.glob("v*"))
        try:
            return create(root_dir)
        except OSError as error:
            made = set(root.glob("v*")) - before
            if len(made) != 1:
                raise
            logger.warning("%s could not be set (%s): the run is in %s", latest, error, min(made))
            return min(made)

    return call


def set_latest(trainer: Trainer) -> None:
    """Let the link lead to the last run with a model, or be gone; a file system without links is a warning.

    anomalib lets it lead to a fit that has only begun. Called before a fit and after it, the link is right however the
    fit ends.
    """
    folder = Path(trainer.default_root_dir)
    if not (trainer.is_global_zero and _is_run(folder)):
        return
    latest, link = folder.parent / LATEST, folder.parent / f".{LATEST}-{os.getpid()}"
    runs = [run for run in folder.parent.glob("v*") if _is_run(run) and any(run.glob("weights/lightning/*.ckpt"))]
    if not runs:
        if latest.is_symlink():
            latest.unlink()
        return
    last = max(runs, key=lambda run: int(run.name[1:]))
    try:
        link.symlink_to(last, target_is_directory=True)
        # Not unlinked first: whoever looks must find one of them.
        link.replace(latest)
    except (OSError, NotImplementedError) as error:
        logger.warning("There is no link %s to %s: %s", LATEST, last, error)


def _is_run(folder: Path) -> bool:
    return folder.name[:1] == "v" and folder.name[1:].isdecimal()


def keep_link_free(trainer: Trainer) -> None:
    """Write elsewhere where a test or prediction comes before any training.

    anomalib would make ``latest`` a real folder, on which its next training fails.
    """
    folder = Path(trainer.default_root_dir)
    if folder.name == LATEST and not folder.is_symlink():
        # Lightning has no setter.
        vars(trainer)["_default_root_dir"] = str(folder.with_name(WITHOUT_TRAINING))

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


def set_link(folder: Path) -> None:
    """Let the link beside a run's folder lead to it; a file system without links is a warning."""
    link = folder.parent / f".{LATEST}-{os.getpid()}"
    try:
        link.symlink_to(folder, target_is_directory=True)
        # Not unlinked first: whoever looks must find one of them.
        link.replace(folder.parent / LATEST)
    except (OSError, NotImplementedError) as error:
        logger.warning("There is no link %s to %s: %s", LATEST, folder, error)


def hold_back(trainer: Trainer) -> None:
    """Let the link lead to the last run with a model while a fit goes on, which anomalib has set to that fit already.

    However the fit ends, the link is right. Without such a run there is no link.
    """
    folder = Path(trainer.default_root_dir)
    latest = folder.parent / LATEST
    if not (trainer.is_global_zero and latest.is_symlink() and latest.resolve() == folder.resolve()):
        return
    before = [run for run in folder.parent.glob("v*") if run != folder and list(run.glob("weights/lightning/*.ckpt"))]
    if before:
        set_link(max(before, key=lambda run: int(run.name[1:]) if run.name[1:].isdecimal() else -1))
    elif not list(folder.glob("weights/lightning/*.ckpt")):
        latest.unlink()


def let_go(trainer: Trainer) -> None:
    """Let the link lead to a fit that has left a model, where anomalib keeps one."""
    folder = Path(trainer.default_root_dir)
    is_run = folder.name[:1] == "v" and folder.name[1:].isdecimal()
    if trainer.is_global_zero and is_run and list(folder.glob("weights/lightning/*.ckpt")):
        set_link(folder)


def keep_link_free(trainer: Trainer) -> None:
    """Write elsewhere where a test or prediction comes before any training.

    anomalib would make ``latest`` a real folder, on which its next training fails.
    """
    folder = Path(trainer.default_root_dir)
    if folder.name == LATEST and not folder.is_symlink():
        # Lightning has no setter.
        vars(trainer)["_default_root_dir"] = str(folder.with_name(WITHOUT_TRAINING))

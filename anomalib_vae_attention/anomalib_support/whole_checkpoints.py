"""Checkpoints that are there whole or not at all, whenever a process is killed."""

import errno
import pickle  # noqa: S403 - only for the name of its error
import struct
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from anomalib.engine.plugins import AnomalibCheckpointIO
from anomalib.utils.serialization import anomalib_safe_globals
from lightning.pytorch import Trainer

from anomalib_vae_attention.common.atomic_files import replacing
from anomalib_vae_attention.common.models import find_model


class WholeCheckpointIO(AnomalibCheckpointIO):
    """anomalib's way of writing checkpoints, made safe where the folder for temporary files is on another disk.

    Lightning writes to the system's folder for temporary files and moves the result; from one disk to another that is
    a copy, half of which an interruption may leave under the checkpoint's name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write a checkpoint beside its place, then move it there; remote places are left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)

    def load_checkpoint(self, path: str | Path, *args, **kwargs) -> dict[str, Any]:
        """Read a checkpoint, or that of a folder, unless it is damaged; see :func:`require_undamaged`."""
        path = checkpoint_file(path)
        require_undamaged(path)
        with _named(path):
            return _require_ours(super().load_checkpoint(path, *args, **kwargs), path)


def use_whole_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write and read with :class:`WholeCheckpointIO`, unless the user has chosen another way."""
    current = trainer.strategy.checkpoint_io
    if type(current) is AnomalibCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO(current.extra_safe_globals)


def checkpoint_file(path: str | Path) -> str | Path:
    """Return a checkpoint's path, or that of the one in a folder; see :func:`.find_model`."""
    return find_model(Path(path), (".ckpt",)) if Path(path).is_dir() else path


def require_undamaged(path: str | Path) -> None:
    """Compare a checkpoint with the checksums in it, which torch writes but does not look at when it loads.

    One in a remote place is not looked at.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a checkpoint, or not all of one, or has changed since it was written.
    """
    if "://" in str(path):
        return
    advice = "Use another copy, or train again."
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError, struct.error) as error:
        # An offset in a damaged table of contents may lie before the beginning; other errors are the disk's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        msg = f"{path} is not a checkpoint, or not all of one ({error}). {advice}"
        raise ValueError(msg) from error
    if damaged:
        msg = f"{path} has changed since it was written: the checksum of {damaged} is wrong. {advice}"
        raise ValueError(msg)


def saved_arguments(path: str | Path, weights_only: bool = True) -> dict[str, Any]:
    """Return the arguments that the model of a checkpoint was made with.

    Args:
        path: The checkpoint; of one in a remote place no argument is returned.
        weights_only: Whether to read plain data only.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is damaged, or of something else; see :func:`require_undamaged`.
    """
    require_undamaged(path)
    if "://" in str(path):
        return {}
    with _named(path), anomalib_safe_globals():
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
    arguments: dict[str, Any] = _require_ours(checkpoint, path)["hyper_parameters"]
    return arguments


@contextmanager
def _named(path: str | Path) -> Generator[None, None, None]:
    """Name the file in an error of torch's."""
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError) as error:
        msg = f"{path} is not a checkpoint of plain data, but perhaps an exported model: {error}"
        raise ValueError(msg) from error


def _require_ours(checkpoint: Any, path: str | Path) -> dict[str, Any]:  # noqa: ANN401
    """Return a checkpoint, if it is one of vae_attention; a ``ValueError`` that names the file otherwise."""
    arguments = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(arguments, dict) or not {"latent_dim", "reference"} <= set(arguments):
        msg = f"{path} is not a checkpoint of vae_attention, but of something else."
        raise ValueError(msg)
    ours: dict[str, Any] = checkpoint
    return ours

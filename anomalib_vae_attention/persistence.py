"""Checkpoints and exported models that are there whole or not at all, whenever a process is killed."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anomalib.engine.plugins import AnomalibCheckpointIO
from anomalib.models.components import AnomalibModule
from lightning.pytorch import LightningModule, Trainer

from .files import replacing


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


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints with :class:`WholeCheckpointIO`, unless the user has chosen another way."""
    current = trainer.strategy.checkpoint_io
    if type(current) is AnomalibCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO(current.extra_safe_globals)


class WholeExport(LightningModule):
    """Exports of an anomalib model that replace earlier ones when they are complete.

    To be inherited from before :class:`AnomalibModule`, whose methods do the work.
    """

    def to_torch(self, export_root: Path | str, *args, **kwargs) -> Path:
        """Export to PyTorch; see :meth:`anomalib.models.components.base.ExportMixin.to_torch`."""
        return _export(AnomalibModule.to_torch, self, Path(export_root), *args, **kwargs)

    def to_onnx(self, export_root: Path | str, *args, **kwargs) -> Path:  # type: ignore[override]
        """Export to ONNX; see :meth:`anomalib.models.components.base.ExportMixin.to_onnx`."""
        return _export(AnomalibModule.to_onnx, self, Path(export_root), *args, **kwargs)

    def to_openvino(self, export_root: Path | str, *args, **kwargs) -> Path:
        """Export to OpenVINO; see :meth:`anomalib.models.components.base.ExportMixin.to_openvino`."""
        return _export(AnomalibModule.to_openvino, self, Path(export_root), *args, **kwargs)


def _export(export: Callable[..., Path], model: LightningModule, root: Path, *args, **kwargs) -> Path:
    """Export to a folder beside the place, then move all files there, the one that is loaded last."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=root) as scratch:
        main = export(model, Path(scratch), *args, **kwargs)
        files = [file for file in Path(scratch).rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: file == main):
            target = root / file.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
        return root / main.relative_to(scratch)

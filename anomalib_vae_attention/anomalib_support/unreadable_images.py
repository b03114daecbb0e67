"""Naming the image files that cannot be read, or would be read wrongly without a word."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_vae_attention.common.images import UNREADABLE, is_turned, why_misread


def unreadable_files(loaders: list[DataLoader]) -> dict[Path, str]:
    """Read every image and mask file of loaders of anomalib's data sets; return why, for each that cannot be read."""
    reasons: dict[Path, str] = {}
    files: list[Any] = []
    for loader in loaders:
        samples = getattr(loader.dataset, "samples", None)
        if samples is None:
            files += getattr(loader.dataset, "image_filenames", [])
        else:
            files += [path for column in ("image_path", "mask_path") for path in samples.get(column, ())]
    for file in dict.fromkeys(Path(path) for path in files if isinstance(path, str | Path) and str(path)):
        try:
            with Image.open(file) as image:
                image.load()
        except UNREADABLE as error:
            reasons[file] = str(error)
    return reasons


def require_as_shown(files: Iterable[str | Path]) -> None:
    """Refuse images that anomalib's reader makes something else of than people see.

    That is: more than 8 bits per channel, several pages, and pictures that are stored turned. Only the headers of the
    files are read, unless there are more than 8 bits.

    Raises:
        ValueError: If there is such a file, naming it.
    """
    for file in files:
        # What became of the file since it was read is of no concern here.
        with contextlib.suppress(OSError), Image.open(file) as image:
            reason = why_misread(image)
            if reason is None and is_turned(image):
                reason = "its EXIF data say that it is to be turned, which anomalib ignores: save it upright"
            if reason is not None:
                msg = f"{file} would be read wrongly: {reason}."
                raise ValueError(msg)


class NameUnreadableFiles(pl.Callback):
    """Make errors name the image files that are at fault.

    When a run ends because an image cannot be read, look which files it was and say so in the error; end it when an
    image would be read wrongly (see :func:`require_as_shown`).
    """

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, *args, **kwargs) -> None:  # noqa: ANN401
        """Refuse images that would be read wrongly, here and in the other loops."""
        del pl_module, args, kwargs
        if not getattr(getattr(trainer.train_dataloader, "dataset", None), "reads_as_shown", False):
            require_as_shown(getattr(batch, "image_path", None) or ())

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put the names of the unreadable files before the message of an error that names none."""
        del pl_module
        if not isinstance(exception, UNREADABLE) or getattr(exception, "filename", None):
            return
        loaders = [trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders]
        loaders.append(trainer.predict_dataloaders)
        flat = [one for some in loaders for one in (some if isinstance(some, list) else [some])]
        reasons = unreadable_files([loader for loader in flat if isinstance(loader, DataLoader)])
        if reasons:
            files = "; ".join(f"{file}: {reason}" for file, reason in reasons.items())
            message = f"{len(reasons)} of the images cannot be read. {files}\n{exception}"
            if isinstance(exception, OSError) and exception.errno is not None:
                # The disk's own errors are printed from their number and this.
                exception.strerror = message
            else:
                exception.args = (message,)

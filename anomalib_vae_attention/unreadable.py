"""Naming the image files that cannot be read: the error of the image library does not say which one it was."""

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
from PIL import Image
from torch.utils.data import DataLoader


def image_files(loader: DataLoader) -> Iterator[Path]:
    """List the image and mask files of a loader of one of anomalib's data sets, without reading them."""
    samples = getattr(loader.dataset, "samples", None)
    if samples is None:
        yield from getattr(loader.dataset, "image_filenames", ())
        return
    for column in ("image_path", "mask_path"):
        yield from (Path(path) for path in samples.get(column, ()) if isinstance(path, str | Path) and str(path))


def unreadable_files(loaders: list[DataLoader]) -> dict[Path, str]:
    """Read every image and mask file of some loaders.

    Args:
        loaders: Loaders of anomalib's data sets; files of others are not known and left out.

    Returns:
        Why a file cannot be read, for each that cannot.
    """
    reasons = {}
    for file in dict.fromkeys(file for loader in loaders for file in image_files(loader)):
        try:
            with Image.open(file) as image:
                image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            reasons[file] = str(error)
    return reasons


class NameUnreadableFiles(pl.Callback):
    """When a run ends because an image cannot be read, look which files are at fault and say so in the error."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put the names of the unreadable files before the message of an error that names none."""
        del pl_module
        if not isinstance(exception, OSError | SyntaxError) or getattr(exception, "filename", None):
            return
        loaders = [trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders]
        loaders.append(trainer.predict_dataloaders)
        flat = [one for some in loaders for one in (some if isinstance(some, list) else [some])]
        reasons = unreadable_files([loader for loader in flat if isinstance(loader, DataLoader)])
        if reasons:
            files = "; ".join(f"{file}: {reason}" for file, reason in reasons.items())
            exception.args = (f"{len(reasons)} of the images cannot be read. {files}\n{exception}",)

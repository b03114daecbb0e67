"""Fitting the default model to good images, with Lightning's trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anomalib.data import AnomalibDataset, ImageItem
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize

from anomalib_vae_attention.anomalib_support.whole_checkpoints import WholeCheckpointIO
from anomalib_vae_attention.common.images import read_tensor
from anomalib_vae_attention.fit.held_out_images import HeldOut
from anomalib_vae_attention.lightning_model import VaeAttention
from anomalib_vae_attention.thresholds.normal_quantile import NormalQuantile

LOWEST_RATE = 0.01
"""False-positive rate where none is asked for and there are enough images to keep it."""
BATCH_SIZE = 16


class GoodImages(AnomalibDataset):
    """Good images, read as predictions read them: turned as their EXIF data say, whatever their folders are called."""

    reads_as_shown = True

    def __init__(self, files: Sequence[Path], resize: Resize) -> None:
        super().__init__(augmentations=resize)
        self._resize = resize
        table = pd.DataFrame({"image_path": [str(file) for file in files], "split": "train", "label_index": 0})
        table["mask_path"] = ""
        table.attrs["task"] = "classification"
        self.samples = table

    def __getitem__(self, index: int) -> ImageItem:
        """Read an image."""
        path = str(self.samples.iloc[index].image_path)
        image = read_tensor(Path(path))
        return ImageItem(image=self._resize(image), gt_label=torch.tensor(0), image_path=path)


class Progress(RichProgressBar):
    """Lightning's bar without the terms of the ELBO: one pass over the images is no descent to look at."""

    def get_metrics(self, *_) -> dict[str, Any]:
        """Return none."""
        return {}


def lowest_rate(count: int) -> float:
    """Return the lowest false-positive rate that a number of held-out images can keep; not below a per cent."""
    return max(LOWEST_RATE, 1 / (count + 1))


def fit(
    files: Sequence[Path], folder: Path, thresholds: NormalQuantile, *, keepable: bool = False
) -> tuple[Path, list[Path]]:
    """Fit the default model, and write its checkpoint.

    Args:
        files: Good images, two or more.
        folder: Where the checkpoint is written, ``model.ckpt``.
        thresholds: What sets thresholds, for its rate.
        keepable: Whether to set that rate to the lowest that the images can keep; see :func:`lowest_rate`.

    Returns:
        The checkpoint, and the images that thresholds were taken from.
    """
    model = VaeAttention(post_processor=thresholds, visualizer=False)
    pre_processor: Any = model.pre_processor
    resize = next(step for step in pre_processor.transform.transforms if isinstance(step, Resize))
    loader = DataLoader(dataset := GoodImages(files, resize), BATCH_SIZE, collate_fn=dataset.collate_fn)
    held_out = sorted(Path(file) for file in HeldOut(loader, thresholds.held_out).files)
    if keepable:
        thresholds.false_positive_rate = thresholds.pixel_false_positive_rate = lowest_rate(len(held_out))
    # Not anomalib's engine, which makes a folder of versions, with a link, in the one that was named.
    trainer = Trainer(
        default_root_dir=folder,
        logger=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, "model"), Progress()],
        plugins=[WholeCheckpointIO()],
        **model.trainer_arguments,
    )
    try:
        trainer.fit(model, loader)
    except SystemExit as stopped:
        # What Lightning makes of Ctrl-C.
        if isinstance(stopped.__context__, KeyboardInterrupt):
            raise stopped.__context__ from None
        raise
    return folder / "model.ckpt", held_out

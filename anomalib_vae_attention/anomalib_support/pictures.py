"""Pictures of anomalib's tests and predictions that keep the image's shape and each other, and a table beside them."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from anomalib.data import ImageBatch
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image.functional import add_text_to_image
from PIL import Image

from anomalib_vae_attention.common.atomic_files import write_table
from anomalib_vae_attention.common.folders import first_free, verdict_of
from anomalib_vae_attention.common.models import TABLE

from .distributed import gather, rank

SIDE = 256
TITLE = {"size": 15}
"""Size of titles, so that all of them fit."""

logger = logging.getLogger(__name__)


class Pictures(ImageVisualizer):
    """anomalib's visualiser, but that no picture is squashed, and none is written over.

    - Pictures have the shape of their image, titles that fit, score and verdict.
    - Images with the same name get different pictures, and each run of predictions a folder of its own.
    - Predictions leave a table beside their pictures, ``predictions.csv``.

    Args:
        side: Pixels of the longer side of each picture of an image.
    """

    def __init__(self, side: int = SIDE) -> None:
        super().__init__(field_size=(side, side), text_config=TITLE)
        self._side = side

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start with the folder of this run; anomalib would remember that of the first."""
        del pl_module
        self._start(Path(trainer.default_root_dir) / "images")

    def on_predict_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start with a folder that no other run has written to."""
        del pl_module
        # Another process may be about to make it.
        self._start(gather(first_free(Path(trainer.default_root_dir) / "images"))[0])

    def _start(self, folder: Path) -> None:
        self.output_dir = folder
        self._written: dict[Path, str] = {}
        self._rows: list[dict[str, object]] = []

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *args) -> None:  # noqa: ANN401
        """Write the pictures of a batch."""
        if not isinstance(batch, ImageBatch):
            super().on_test_batch_end(trainer, pl_module, outputs, batch, *args)
            return
        for item in batch:
            self.field_size = self._size(item.image_path)
            picture: Any = self.visualize(item)
            if picture is None:
                continue
            verdict = _verdict(item)
            if verdict:
                picture = add_text_to_image(picture, verdict, size=15, position=(10, picture.height - 28))
            file = self._name(trainer, item.image_path or "")
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
            score = None if item.pred_score is None else round(float(item.pred_score), 6)
            label = verdict.partition(" ")[0]
            self._rows.append({"path": item.image_path, "score": score, "label": label, "picture": str(file)})

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the table of all processes' predictions, and say where it is."""
        del trainer, pl_module
        rows = [row for part in gather(self._rows) for row in part]
        if rank() or not rows:
            return
        table = Path(str(self.output_dir)) / TABLE
        # Several processes may have been given the same image.
        write_table(table, pd.DataFrame(rows).drop_duplicates("path", keep="last"))
        logger.info("Scores, verdicts and pictures: %s", table)

    def _size(self, file: str | None) -> tuple[int, int]:
        """Return width and height of a picture of an image, in the image's shape."""
        if not file:
            return self._side, self._side
        with Image.open(file) as image:
            scale = self._side / max(image.size)
            return max(1, round(image.width * scale)), max(1, round(image.height * scale))

    def _name(self, trainer: pl.Trainer, image: str) -> Path:
        """Return a picture's file: where anomalib would put it, or below more of its path if that is taken."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        folder = Path(str(self.output_dir))
        names = getattr(datamodule, "name", None), getattr(datamodule, "category", None)
        file, parts = generate_output_filename(image, folder, *names, mkdir=False), Path(image).parts[1:]
        depth = len(file.relative_to(folder).parts)
        while self._written.setdefault(file, image) != image and depth < len(parts):
            depth += 1
            file = folder.joinpath(*parts[-depth:])
        return file


def _verdict(item: Any) -> str:  # noqa: ANN401
    """Return score and verdict as words, as far as there are any."""
    if item.pred_score is None or item.pred_label is None or item.pred_label.dtype.is_floating_point:
        return ""
    return f"{verdict_of(item.pred_label)} {float(item.pred_score):.3f}"

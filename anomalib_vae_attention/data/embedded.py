"""The datamodule of the embedded data set, which needs neither a download nor a path."""

import logging
from pathlib import Path

from anomalib.data import MVTecAD
from anomalib.utils.path import resolve_dataset_root

from .drawing import choose_drawing
from .store import ensure_category, is_drawn

logger = logging.getLogger(__name__)


class EmbeddedAD(MVTecAD):
    """Two small categories drawn by the package on first use, for a first run and for tests.

    ``washer`` (an object: a turned metal part, placed and rotated at random) has the defects ``contamination``,
    ``crack``, ``missing_piece`` and ``scratch``; ``fabric`` (a texture: a twill) has ``cut``, ``hole``,
    ``loose_thread`` and ``stain``. Each category has 60 good images to train on, and 12 good and 8 of each kind of
    defect to test on: RGB, 256x256 pixels, with exact masks, in the layout of MVTec AD and read by its dataset.

    The images are drawn, not photographed: they show that everything works, and a score on them says little about
    real parts. As in ``MVTecAD`` the validation set is the test set (``ValSplitMode.SAME_AS_TEST``), so thresholds,
    and the F1 scores that depend on them, are tuned on the test images; ``val_split_mode="from_test"`` sets some of
    them apart.

    Args:
        root: Folder of the data set; the category's folder is made in it. ``None`` takes anomalib's cache folder for
            data sets. Defaults to ``"./datasets/EmbeddedAD"``.
        category: ``"washer"`` or ``"fabric"``.
        num_workers: Worker processes of each dataloader. Defaults to 0, unlike ``MVTecAD``: the images are few and
            small, and starting workers costs more time than reading them.
        **kwargs: The other arguments of ``MVTecAD``. Its ``seed`` is that of random splits; the pixels never depend
            on it.

    Raises:
        ValueError: If there is no such category.

    Example:
        >>> from anomalib_vae_attention import EmbeddedAD
        >>> datamodule = EmbeddedAD(category="fabric")
        >>> datamodule.prepare_data()
        >>> datamodule.setup()
        >>> next(iter(datamodule.train_dataloader())).image.shape
        torch.Size([32, 3, 256, 256])
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/EmbeddedAD",
        category: str = "washer",
        num_workers: int = 0,
        **kwargs,
    ) -> None:
        choose_drawing(category)
        root = resolve_dataset_root(root, "EmbeddedAD")
        super().__init__(root=root, category=category, num_workers=num_workers, **kwargs)

    def prepare_data(self) -> None:
        """Draw the category unless it is there already, and say that this is drawn data.

        Raises:
            ValueError: If the category's folder holds something that this package did not draw.
            OSError: If the root is a file or cannot be written.
        """
        drawn_now = ensure_category(self.root, self.category)
        logger.info(
            "%s the embedded data set, category %r, in %s: its images are drawn, not real; "
            "use --data to name real data, such as --data MVTecAD.",
            "Drew" if drawn_now else "Found",
            self.category,
            (self.root / self.category).resolve(),
        )

    def _setup(self, _stage: str | None = None) -> None:
        """Create the datasets, and draw them first if ``prepare_data`` has not been called."""
        if not is_drawn(self.root / self.category):
            self.prepare_data()
        super()._setup(_stage)

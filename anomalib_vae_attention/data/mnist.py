"""One-class MNIST: a digit is normal, others are not; or strokes that do not belong to it, with their masks."""

import gzip
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from anomalib.data import Folder
from anomalib.data.utils import ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import MNIST

from anomalib_vae_attention.common.argument_checks import require_choice
from anomalib_vae_attention.common.atomic_files import ensure_folder, explaining

logger = logging.getLogger(__name__)

ABNORMAL = ("digits", "strokes")
SHAPE = (28, 28)
STROKE_RADIUS = 1.1
"""Half the width of a stroke in pixels."""
STROKE_LENGTHS = (8.0, 14.0)
"""Least and greatest length of a stroke in pixels."""
LEAST_CHANGE = 64
"""Grey levels by which a stroke must have brightened a pixel that counts as defect."""
LEAST_PIXELS = 12
"""Least number of such pixels; a stroke that hides behind the digit is drawn again."""


def read_idx(root: Path, name: str, shape: tuple[int, ...] = ()) -> NDArray[np.uint8]:
    """Read the file ``name`` or ``name.gz`` of MNIST in a folder, or in torchvision's ``MNIST/raw`` below it.

    Returns:
        So many bytes of a shape as there are, ``(N, *shape)``.

    Raises:
        FileNotFoundError: If it is not there; the message says what to do.
        ValueError: If it is no IDX file of such bytes, or cut short.
    """
    folders = (root, root / "raw", root / "MNIST" / "raw")
    places = [folder / f"{name}{ending}" for folder in folders for ending in ("", ".gz")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        msg = f"root={str(root)!r}: there is no {name}[.gz] in it; name MNIST's folder, or set download=true."
        raise FileNotFoundError(msg)
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        # Two zeros, 8 for bytes and the number of dimensions make one number; then comes each dimension.
        kind, count, *rest = np.frombuffer(content, ">u4", len(shape) + 2).tolist()
        values = np.frombuffer(content, np.uint8, offset=4 * len(shape) + 8).reshape(count, *shape)
    except (EOFError, gzip.BadGzipFile, ValueError) as error:
        msg = f"{file} is no IDX file of bytes, or is cut short: {error}"
        raise ValueError(msg) from error
    if (kind, *rest) != (2048 + len(shape) + 1, *shape):
        msg = f"{file} is not MNIST's."
        raise ValueError(msg)
    return values


def read_mnist(root: Path, split: str, download: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read MNIST's ``train`` or ``test`` split from a folder, to which torchvision may ``download`` what is missing.

    Returns:
        Images of shape ``(N, 28, 28)``, 0 black, and digits of shape ``(N,)``; errors as :func:`read_idx`.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    files = {f"{prefix}-images-idx3-ubyte": SHAPE, f"{prefix}-labels-idx1-ubyte": ()}
    try:
        images, digits = (read_idx(root, name, shape) for name, shape in files.items())
    except FileNotFoundError:
        if not download:
            raise
        MNIST(root, download=True)
        return read_mnist(root, split)
    if len(images) != len(digits):
        msg = f"The files in {root} are not MNIST's: {len(images)} images and {len(digits)} digits."
        raise ValueError(msg)
    return images, digits


def add_stroke(image: NDArray[np.uint8], random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Add a straight white stroke, at random, to a digit of shape ``(28, 28)``, 0 black.

    Returns:
        The digit, and a mask: 255 where the stroke brightened it by a quarter of the range or more, 0 elsewhere.
    """
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    while True:
        middle = random.uniform(7, 21, 2)
        angle, half = random.uniform(0, np.pi), random.uniform(*STROKE_LENGTHS) / 2
        direction = np.array([np.sin(angle), np.cos(angle)])
        along = (rows - middle[0]) * direction[0] + (columns - middle[1]) * direction[1]
        nearest = np.clip(along, -half, half)
        distance = np.hypot(rows - middle[0] - nearest * direction[0], columns - middle[1] - nearest * direction[1])
        stroke = 255 * np.clip(STROKE_RADIUS + 0.5 - distance, 0, 1)
        drawn = np.maximum(image, stroke.round().astype(np.uint8))
        changed = drawn.astype(int) - image >= LEAST_CHANGE
        if changed.sum() >= LEAST_PIXELS:
            return drawn, changed.astype(np.uint8) * 255


class OneClassMNIST(Folder):
    """MNIST with one digit for normal; the images are written as PNG files on first use, for anomalib reads files.

    It learns from the digit's training images. It is tested on the digit's test images, which are normal, against
    test images of other digits (an image-level task, as Liu et al.'s figures), or against the same test images with a
    stroke added (``abnormal="strokes"``: with masks, so that localisation can be measured).

    The validation set is the test set (``ValSplitMode.SAME_AS_TEST``), as in ``MVTecAD``: thresholds and the F1 scores
    that depend on them are tuned on the test images.

    Args:
        root: Folder of MNIST's four IDX files, packed or not; torchvision's layout will do. It is only read.
        normal_digit: The digit to learn, 0 to 9.
        abnormal_digits: Digits to tell from it; without effect on strokes. Defaults to all others.
        abnormal: ``"digits"`` or ``"strokes"``.
        image_root: Folder to write PNG files to.
        download: Whether torchvision may download the IDX files to ``root`` where they are missing.
        train_batch_size: Images per batch of training.
        eval_batch_size: Images per batch of validation, testing and prediction.
        num_workers: Worker processes of each dataloader.
        val_split_mode: How to make the validation set.
        **kwargs: The other arguments of ``Folder``. Its ``seed`` is that of random splits; strokes never depend on it.

    Raises:
        ValueError: If there is no such digit or kind of anomaly.
    """

    def __init__(
        self,
        root: Path | str = "./datasets/MNIST",
        normal_digit: int = 1,
        abnormal_digits: Sequence[int] | None = None,
        abnormal: Literal["digits", "strokes"] = "digits",
        image_root: Path | str | None = "./datasets/OneClassMNIST",
        download: bool = False,
        train_batch_size: int = 128,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        **kwargs,
    ) -> None:
        require_choice("abnormal", abnormal, ABNORMAL)
        others = [digit for digit in range(10) if digit != normal_digit]
        digits = others if abnormal_digits is None else list(abnormal_digits)
        if normal_digit not in range(10) or not digits or not set(digits) <= set(others):
            msg = f"normal_digit={normal_digit} must be a digit, and abnormal_digits={digits} one or more others."
            raise ValueError(msg)
        self.idx_root, self.download = Path(root), download
        self.normal_digit, self.abnormal = normal_digit, abnormal
        self.image_root = resolve_dataset_root(image_root, "OneClassMNIST")
        normal, test = f"train/{normal_digit}", f"test/{normal_digit}"
        bad = [f"test/{digit}" for digit in digits] if abnormal == "digits" else [f"strokes/{normal_digit}"]
        masks = [f"masks/{normal_digit}"] if abnormal == "strokes" else []
        self.folders = [normal, test, *bad, *masks]
        super().__init__(
            name=f"mnist_{normal_digit}_{abnormal}",
            root=self.image_root,
            normal_dir=normal,
            normal_test_dir=test,
            abnormal_dir=bad,
            mask_dir=masks or None,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            val_split_mode=val_split_mode,
            **kwargs,
        )

    def prepare_data(self) -> None:
        """Write the folders of PNG files that are missing.

        Raises:
            FileNotFoundError: If the IDX files are not there, and may not be downloaded.
            OSError: If ``image_root`` cannot be written.
        """
        missing = [folder for folder in self.folders if not (self.image_root / folder).is_dir()]
        if not missing:
            return
        logger.info("Writing %s of MNIST as PNG files to %s", ", ".join(missing), self.image_root.resolve())
        for folder in missing:
            split = "train" if folder.startswith("train") else "test"
            write = partial(self._write, folder, read_mnist(self.idx_root, split, self.download))
            with explaining(f"image_root={str(self.image_root)!r} cannot be written", "name a folder that can."):
                ensure_folder(self.image_root / folder, Path.is_dir, write)

    @staticmethod
    def _write(folder: str, split: tuple[NDArray[np.uint8], NDArray[np.uint8]], target: Path) -> None:
        """Make what a folder holds of a split, each image with its number there for a name."""
        target.mkdir()
        kind, digit = folder.split("/")
        images, digits = split
        for number in np.flatnonzero(digits == int(digit)):
            image = images[number]
            if kind in {"strokes", "masks"}:
                drawn, mask = add_stroke(image, np.random.default_rng(int(number)))
                image = drawn if kind == "strokes" else mask
            Image.fromarray(image).save(target / f"{number:05d}.png")

    def _setup(self, _stage: str | None = None) -> None:
        """Create the datasets, and write their files first if ``prepare_data`` has not been called."""
        self.prepare_data()
        super()._setup(_stage)

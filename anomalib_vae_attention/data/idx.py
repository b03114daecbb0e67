"""MNIST's IDX files, packed or not, in a folder of their own or as torchvision lays them out."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import MNIST

SHAPE = (28, 28)


def find_idx(root: Path, name: str) -> Path:
    """Find a file ``name`` or ``name.gz`` in a folder or in torchvision's ``MNIST/raw`` below it.

    Raises:
        FileNotFoundError: If it is not there; the message says what to do.
    """
    for folder in (root, root / "raw", root / "MNIST" / "raw"):
        for file in (folder / name, folder / f"{name}.gz"):
            if file.is_file():
                return file
    msg = f"root={str(root)!r}: there is no {name}[.gz] in it; name the folder of MNIST's files, or set download=true."
    raise FileNotFoundError(msg)


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, packed if its name ends in ``.gz``, as an array of the shape that it says.

    Raises:
        ValueError: If it is no IDX file of bytes, or cut short.
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        # Two zeros, 8 for bytes, the number of dimensions, and four bytes of each.
        start = 4 + 4 * content[3] if content[:3] == b"\0\0\x08" else 0
        shape = np.frombuffer(content[4:start], ">u4").tolist()
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    except (EOFError, gzip.BadGzipFile, IndexError, ValueError) as error:
        msg = f"{file} is no IDX file of bytes, or is cut short: {error}"
        raise ValueError(msg) from error


def read_mnist(root: Path, split: str, download: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read MNIST's ``train`` or ``test`` split from a folder, to which torchvision may ``download`` what is missing.

    Returns:
        Images of shape ``(N, 28, 28)``, 0 black, and digits of shape ``(N,)``.

    Raises:
        FileNotFoundError: If the files are not there.
        ValueError: If they are not MNIST's.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    try:
        files = [find_idx(root, name) for name in names]
    except FileNotFoundError:
        if not download:
            raise
        MNIST(root, download=True)
        files = [find_idx(root, name) for name in names]
    images, digits = (read_idx(file) for file in files)
    if images.shape[1:] != SHAPE or digits.shape != images.shape[:1]:
        msg = f"{files[0]} and {files[1]} are not MNIST's: they hold arrays of {images.shape} and {digits.shape}."
        raise ValueError(msg)
    return images, digits

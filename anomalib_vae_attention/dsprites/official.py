"""The published file of dSprites: checked before it is opened, and read in pieces.

Matthey et al. publish it at github.com/google-deepmind/dsprites-dataset under the Apache licence 2.0. Its array
``imgs`` is 3 GB, more than many machines can spare, and its ``metadata`` a pickle, which could run any code: only
``imgs`` is read, piece by piece.
"""

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .drawing import SIZE

FILE_NAME = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
URL = f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{FILE_NAME}"

BLOB_ID = "d98996d3f8ee1550e06b9d4ed78d0beb478910d5"
"""The file's name in git: SHA-1 of ``blob <size>``, a zero byte, and the contents."""

IMAGES_PER_PIECE = 4096


def blob_id(file: Path) -> str:
    """Compute the git blob id of a file: 40 hexadecimal digits."""
    digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: digest).hexdigest()


def check(file: Path) -> None:
    """Make sure that a file is the published one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, altered or another file.
    """
    if not file.is_file():
        msg = f"npz={str(file)!r}: there is no such file; leave npz out to have dSprites drawn"
        raise FileNotFoundError(msg)
    found = blob_id(file)
    if found != BLOB_ID:
        msg = (
            f"npz={str(file)!r} is not the published dSprites file: its git blob id is {found} instead of {BLOB_ID}. "
            f"It may be truncated or altered; fetch it again from {URL}, or leave npz out to have dSprites drawn."
        )
        raise ValueError(msg)


def read_images(file: Path) -> Iterator[bytes]:
    """Read the images of the published file as bits, in the order of the index, and never its pickled metadata.

    Errors are those of :func:`check`, which comes first, even if no image is asked for.
    """
    check(file)
    return _unpacked(file)


def _unpacked(file: Path) -> Iterator[bytes]:
    with zipfile.ZipFile(file) as archive, archive.open("imgs.npy") as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        while piece := stream.read(IMAGES_PER_PIECE * SIZE * SIZE):
            yield np.packbits(np.frombuffer(piece, np.uint8)).tobytes()

"""dSprites on disk: whole or not at all, from the drawing or from the published file."""

import errno
import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anomalib_vae_attention.dsprites import official, store

IMAGES = 6
BITS = np.random.default_rng(0).integers(0, 256, (IMAGES, 512), np.uint8)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make do with six images in place of 737,280."""
    monkeypatch.setattr(store, "IMAGES", IMAGES)


def chunks() -> Iterator[bytes]:
    yield BITS[:4].tobytes()
    yield BITS[4:].tobytes()


def refuse() -> Iterator[bytes]:
    msg = "the images were made again"
    raise AssertionError(msg)
    yield b""


def read(file: Path) -> np.ndarray:
    """Read all images back."""
    return store.read_images(file, np.arange(IMAGES))


def test_written_once(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "images.bits"
    for make in (chunks(), refuse()):
        store.ensure_images(file, make)
        assert np.array_equal(read(file), BITS)
    assert np.array_equal(store.read_images(file, np.array([[4], [1]])), BITS[[[4], [1]]])
    assert file.stat().st_mode & 0o044


def test_truncated_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "images.bits"
    store.ensure_images(file, chunks())
    file.write_bytes(file.read_bytes()[:-1])
    store.ensure_images(file, chunks())
    assert np.array_equal(read(file), BITS)


def test_full_disk(tmp_path: Path) -> None:
    """The error names the file and keeps its number; nothing half-written is left."""

    def fill() -> Iterator[bytes]:
        yield BITS[:1].tobytes()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"images\.bits.*No space left on device.*another root") as caught:
        store.ensure_images(tmp_path / "images.bits", fill())
    assert caught.value.errno == errno.ENOSPC
    assert [file.name for file in tmp_path.iterdir()] == [".images.bits.lock"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_interruption_leaves_nothing(failure: type[BaseException], tmp_path: Path) -> None:
    def interrupt() -> Iterator[bytes]:
        yield BITS[:1].tobytes()
        raise failure

    with pytest.raises(failure):
        store.ensure_images(tmp_path / "images.bits", interrupt())
    assert [file.name for file in tmp_path.iterdir()] == [".images.bits.lock"]


def test_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 images were to be kept, but dSprites has 6"):
        store.ensure_images(tmp_path / "images.bits", [BITS[:5].tobytes()])


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match="cannot be kept there"):
        store.ensure_images(tmp_path / "file" / "images.bits", chunks())
    assert (tmp_path / "file").read_text() == "kept"


def make_npz(file: Path, array: np.ndarray) -> None:
    """Write a file like the published one, whose metadata would end the process if it were unpickled."""

    class Bomb:
        def __reduce__(self) -> tuple:
            return os._exit, (3,)

    content = io.BytesIO()
    np.save(content, array)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.npy", pickle.dumps(Bomb()))
        archive.writestr("imgs.npy", content.getvalue())


def test_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels are read piece by piece, and its pickle never."""
    file = tmp_path / official.FILE_NAME
    make_npz(file, store.unpack(BITS))
    monkeypatch.setattr(official, "BLOB_ID", official.blob_id(file))
    monkeypatch.setattr(official, "IMAGES_PER_PIECE", 4)
    assert b"".join(official.read_images(file)) == BITS.tobytes()


def test_blob_id_is_git_s(tmp_path: Path) -> None:
    file = tmp_path / "hello"
    file.write_bytes(b"hello\n")
    assert official.blob_id(file) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_altered_published_file(tmp_path: Path) -> None:
    file = tmp_path / "altered.npz"
    make_npz(file, store.unpack(BITS))
    with pytest.raises(ValueError, match=r"npz=.*altered\.npz.* is not the published dSprites file"):
        store.ensure_images(tmp_path / "official.bits", official.read_images(file))
    assert not (tmp_path / "official.bits").exists()
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        official.check(tmp_path / "missing.npz")

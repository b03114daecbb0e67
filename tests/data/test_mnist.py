"""One-class MNIST: IDX files, folders of PNG files, strokes and their masks."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import MNIST

from anomalib_vae_attention import OneClassMNIST
from anomalib_vae_attention.data.mnist import LEAST_CHANGE, LEAST_PIXELS, SHAPE, add_stroke, read_idx, read_mnist


def idx(array: NDArray[np.uint8]) -> bytes:
    """Write an array as IDX."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write twenty images of noise a split, two a digit, the first packed."""
    random, folder = np.random.default_rng(0), tmp_path / "idx"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        images, digits = random.integers(0, 120, (20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(digits))
    return folder


def test_idx_files_are_read_as_torchvision_does(root: Path, tmp_path: Path) -> None:
    images, digits = read_mnist(root, "train")
    raw = tmp_path / "theirs" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        packed = (root / f"{prefix}-images-idx3-ubyte.gz").read_bytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(gzip.decompress(packed))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes((root / f"{prefix}-labels-idx1-ubyte").read_bytes())
    theirs = MNIST(tmp_path / "theirs", train=True)
    assert np.array_equal(images, theirs.data.numpy())
    assert np.array_equal(digits, theirs.targets.numpy())
    assert np.array_equal(read_mnist(tmp_path / "theirs", "train")[0], images)


def test_a_digit_against_others(root: Path, tmp_path: Path) -> None:
    data = OneClassMNIST(root=root, normal_digit=3, abnormal_digits=[5, 8], image_root=tmp_path / "png")
    data.prepare_data()
    data.setup()
    assert len(data.train_data) == 2
    assert data.test_data.samples.groupby("label_index").size().to_dict() == {0: 2, 1: 4}
    assert {Path(path).parent.name for path in data.test_data.samples.image_path} == {"3", "5", "8"}
    images, digits = read_mnist(root, "test")
    for path in data.test_data.samples.image_path:
        number = int(Path(path).stem)
        assert str(digits[number]) == Path(path).parent.name
        assert np.array_equal(np.asarray(Image.open(path)), images[number])
    batch = next(iter(data.test_dataloader()))
    assert batch.image.shape == (6, 3, 28, 28)
    assert OneClassMNIST(root=root, normal_digit=3).folders[2:] == [
        f"test/{digit}" for digit in range(10) if digit != 3
    ]


def test_strokes_have_masks_and_never_change(root: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("first", "second"):
        data = OneClassMNIST(root=root, normal_digit=3, abnormal="strokes", image_root=tmp_path / name, seed=len(name))
        data.setup()
        table = data.test_data.samples
        assert table.groupby("label_index").size().to_dict() == {0: 2, 1: 2}
        bad = table[table.label_index == 1]
        contents.append([Path(path).read_bytes() for column in ("image_path", "mask_path") for path in bad[column]])
        assert {Path(path).stem for path in bad.image_path} == {Path(path).stem for path in bad.mask_path}
    assert contents[0] == contents[1]
    batch = next(iter(data.test_dataloader()))
    assert batch.gt_mask.shape == (4, 28, 28)


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_is_what_a_stroke_brightens(seed: int) -> None:
    random = np.random.default_rng(seed)
    image = random.integers(0, 255, (28, 28), np.uint8)
    drawn, mask = add_stroke(image, random)
    assert (drawn >= image).all()
    assert np.array_equal(mask == 255, drawn.astype(int) - image >= LEAST_CHANGE)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask > 0).sum() >= LEAST_PIXELS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normal_digit": 10}, "normal_digit=10 must be a digit"),
        ({"normal_digit": 1, "abnormal_digits": [1, 2]}, r"abnormal_digits=\[1, 2\]"),
        ({"abnormal_digits": []}, r"abnormal_digits=\[\]"),
        ({"abnormal": "noise"}, "abnormal must be one of"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneClassMNIST(**arguments)


def test_files_that_are_missing_or_broken(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no train-images-idx3-ubyte\[.gz\] in it.*download=true"):
        OneClassMNIST(root=tmp_path / "nowhere", image_root=tmp_path / "png").prepare_data()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"image_root=.* cannot be written"):
        OneClassMNIST(root=root, image_root=tmp_path / "file").prepare_data()
    packed = root / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut short: Compressed file ended"):
        read_idx(root, "train-images-idx3-ubyte", SHAPE)
    for content in (b"", b"\0\0\x08\x01\0\0\0\x09ab", b"PNG"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ValueError, match="is no IDX file of bytes, or is cut short"):
            read_idx(tmp_path, "bad")
    labels = root / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(3, np.uint8)))
    (root / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((4, 28, 28), np.uint8)))
    with pytest.raises(ValueError, match="are not MNIST's"):
        read_mnist(root, "train")

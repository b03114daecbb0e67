"""The embedded data set on disk and as a datamodule."""

import logging
import socket
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.image.mvtecad import MVTecADDataset
from anomalib.data.utils import ValSplitMode
from anomalib.utils.path import get_datasets_dir
from jsonargparse import ArgumentParser
from PIL import Image

from anomalib_vae_attention.data import EmbeddedAD, drawing, store


@pytest.fixture(scope="module")
def full_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw the whole default category once."""
    root = tmp_path_factory.mktemp("full")
    assert store.ensure_category(root, "washer")
    return root


def test_anomalib_reads_the_layout(full_root: Path) -> None:
    """MVTec AD's own dataset finds every image, label and mask."""
    train = MVTecADDataset(full_root, "washer", split="train")
    test = MVTecADDataset(full_root, "washer", split="test")
    assert train.samples.label.value_counts().to_dict() == {"good": 60}
    kinds = dict.fromkeys(drawing.CATEGORIES["washer"].defects, 8)
    assert test.samples.label.value_counts().to_dict() == {"good": 12, **kinds}
    for row in test.samples.itertuples():
        if row.label == "good":
            assert row.mask_path is None
            continue
        assert Path(row.mask_path).name == f"{Path(row.image_path).stem}_mask.png"
        assert Path(row.mask_path).parent.name == row.label
        with Image.open(row.mask_path) as mask:
            assert (mask.mode, mask.size) == ("L", (256, 256))
            assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_files_hold_the_drawn_pixels(full_root: Path) -> None:
    """Nothing is lost on the way to the disk."""
    sample = drawing.draw_image("washer", drawing.Name("test", "crack", 5))
    with Image.open(full_root / "washer/test/crack/005.png") as image:
        assert np.array_equal(np.asarray(image), sample.image)
    with Image.open(full_root / "washer/ground_truth/crack/005_mask.png") as mask:
        assert np.array_equal(np.asarray(mask), sample.mask)


def test_batches(full_root: Path) -> None:
    """A prepared datamodule serves what anomalib's models expect, without worker processes."""
    datamodule = EmbeddedAD(root=full_root, train_batch_size=16, eval_batch_size=50)
    datamodule.prepare_data()
    datamodule.setup()
    train = next(iter(datamodule.train_dataloader()))
    assert train.image.shape == (16, 3, 256, 256)
    assert train.image.dtype == torch.float32
    assert 0.0 <= train.image.min() < train.image.max() <= 1.0
    assert not train.gt_label.any()
    test = next(iter(datamodule.test_dataloader()))
    assert test.image.shape == (44, 3, 256, 256)
    assert test.gt_mask.shape == (44, 256, 256)
    assert torch.equal(test.gt_mask.flatten(1).any(dim=1), test.gt_label.bool())
    assert test.gt_label.sum() == 32
    assert datamodule.train_dataloader().num_workers == 0
    assert datamodule.val_split_mode is ValSplitMode.SAME_AS_TEST
    assert datamodule.val_data.samples.image_path.tolist() == datamodule.test_data.samples.image_path.tolist()


@pytest.mark.usefixtures("fewer")
def test_setup_alone_draws(tmp_path: Path) -> None:
    """``setup`` without ``prepare_data`` works, and each category has a folder of its own."""
    datamodule = EmbeddedAD(root=tmp_path, category="fabric")
    datamodule.setup()
    assert len(datamodule.train_data) == 2
    assert len(datamodule.test_data) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fabric.lock", "fabric"]


@pytest.mark.usefixtures("fewer")
def test_log_says_what_where_and_how_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both times one line says that the data are drawn, where they are, and how to name real ones."""
    datamodule = EmbeddedAD(root=tmp_path)
    for start in ("Drew", "Found"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            datamodule.prepare_data()
        (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("anomalib_vae_attention")]
        assert line.startswith(start)
        assert "embedded data set" in line
        assert "drawn, not real" in line
        assert str(tmp_path / "washer") in line
        assert "--data" in line


@pytest.mark.usefixtures("fewer")
def test_neither_network_nor_home_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default everything stays under the working folder."""

    def refuse(*_: object) -> NoReturn:
        msg = "the network was used"
        raise AssertionError(msg)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.chdir(work)
    datamodule = EmbeddedAD()
    datamodule.prepare_data()
    datamodule.setup()
    next(iter(datamodule.train_dataloader()))
    assert not list(home.iterdir())
    assert sorted(path.name for path in Path("datasets/EmbeddedAD").iterdir()) == [".washer.lock", "washer"]
    assert [path.name for path in Path().iterdir()] == ["datasets"]


def test_no_root_means_the_cache_of_anomalib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``None`` is resolved as for anomalib's own data sets."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EmbeddedAD(root=None).root == get_datasets_dir() / "EmbeddedAD"


def test_command_line_arguments(tmp_path: Path) -> None:
    """The command line's parser builds it, with every argument typed."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalibDataModule, "data", fail_untyped=True)
    arguments = ["--data", "anomalib_vae_attention.EmbeddedAD", "--data.category", "fabric"]
    arguments += ["--data.root", str(tmp_path), "--data.val_split_mode", "from_test", "--data.seed", "3"]
    datamodule = parser.instantiate_classes(parser.parse_args(arguments)).data
    assert isinstance(datamodule, EmbeddedAD)
    assert (datamodule.name, datamodule.category, datamodule.seed) == ("EmbeddedAD", "fabric", 3)
    assert datamodule.root == tmp_path
    assert datamodule.val_split_mode is ValSplitMode.FROM_TEST


def test_unknown_category() -> None:
    """It is refused before anything is drawn."""
    with pytest.raises(ValueError, match="available are washer, fabric"):
        EmbeddedAD(category="bottle")

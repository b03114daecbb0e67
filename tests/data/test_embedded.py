"""The embedded data set on disk and as a datamodule."""

import errno
import json
import logging
import multiprocessing
import os
import socket
from collections.abc import Callable
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

HAS_FORK = "fork" in multiprocessing.get_all_start_methods()
needs_fork = pytest.mark.skipif(not HAS_FORK, reason="the test patches the module that its child processes inherit")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw seven images in place of a hundred."""
    monkeypatch.setattr(drawing, "TRAIN_GOOD", 2)
    monkeypatch.setattr(drawing, "TEST_GOOD", 1)
    monkeypatch.setattr(drawing, "TEST_PER_DEFECT", 1)


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
    sample = drawing.draw_sample("washer", drawing.Name("test", "crack", 5))
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


@pytest.mark.usefixtures("few")
def test_setup_alone_draws(tmp_path: Path) -> None:
    """``setup`` without ``prepare_data`` works, and each category has a folder of its own."""
    datamodule = EmbeddedAD(root=tmp_path, category="fabric")
    datamodule.setup()
    assert len(datamodule.train_data) == 2
    assert len(datamodule.test_data) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["fabric"]


@pytest.mark.usefixtures("few")
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


@pytest.mark.usefixtures("few")
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
    assert [path.as_posix() for path in Path().glob("*/*/*")] == ["datasets/EmbeddedAD/washer"]


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


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_interrupted_drawing_leaves_nothing(
    failure: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a fault halfway the root is as before, and the next use draws."""
    draw, drawn = drawing.draw_sample, []

    def fail_at_fourth(category: str, name: drawing.Name) -> drawing.Sample:
        drawn.append(name)
        if len(drawn) > 3:
            raise failure
        return draw(category, name)

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw_sample", fail_at_fourth)
        with pytest.raises(failure):
            store.ensure_category(tmp_path, "washer")
    assert len(drawn) == 4
    assert not list(tmp_path.iterdir())
    assert store.ensure_category(tmp_path, "washer")
    assert store.is_drawn(tmp_path / "washer")


def run_in_children(work: Callable[[int], int], count: int) -> list[int | None]:
    """Run ``work(number)`` in forked processes at once and return their exit codes."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=lambda number=number: os._exit(work(number))) for number in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    return [child.exitcode for child in children]


@needs_fork
@pytest.mark.usefixtures("few")
def test_killed_drawing_is_not_picked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if no clean-up could run, the half category is not in the place of the whole one."""

    def die(folder: Path, *_: object) -> None:
        # The marker is the last file: all images are there, and only the renaming is missing.
        assert folder.name == drawing.MARKER
        os._exit(9)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda self, *_, **__: die(self))
        assert run_in_children(lambda _: int(store.ensure_category(tmp_path, "washer")), 1) == [9]
    assert not store.is_drawn(tmp_path / "washer")
    assert store.ensure_category(tmp_path, "washer")
    assert len(MVTecADDataset(tmp_path, "washer", split="train")) == 2


@needs_fork
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("outdated", [False, True])
def test_processes_that_draw_at_once_all_end_well(
    outdated: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All have drawn before any renames; one wins, the others use its work, and nothing else is left."""
    if outdated:
        store.ensure_category(tmp_path, "washer")
        edit_marker(tmp_path / "washer", version=0)
    barrier = multiprocessing.get_context("fork").Barrier(3)
    draw = drawing.draw_category

    def draw_and_wait(category: str, folder: Path) -> None:
        draw(category, folder)
        barrier.wait(60)

    monkeypatch.setattr(store, "draw_category", draw_and_wait)
    codes = run_in_children(lambda _: 10 + store.ensure_category(tmp_path, "washer"), 3)
    assert sorted(codes) == [10, 10, 11]
    assert store.is_drawn(tmp_path / "washer")
    assert {path.name for path in tmp_path.iterdir()} <= {"washer", ".washer.lock"}


def edit_marker(folder: Path, **changes: object) -> None:
    """Change entries of the marker file."""
    marker = json.loads((folder / drawing.MARKER).read_text())
    (folder / drawing.MARKER).write_text(json.dumps(marker | changes))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: edit_marker(folder, version=drawing.FORMAT_VERSION - 1),
        lambda folder: (folder / "train/good/001.png").unlink(),
        lambda folder: (folder / "test/crack/000.png").write_bytes(b""),
    ],
    ids=["another version", "missing file", "empty file"],
)
def test_outdated_or_damaged_category_is_drawn_anew(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    """What this package drew it may also replace."""
    folder = tmp_path / "washer"
    assert store.ensure_category(tmp_path, "washer")
    assert not store.ensure_category(tmp_path, "washer")
    spoil(folder)
    assert not store.is_drawn(folder)
    assert store.ensure_category(tmp_path, "washer")
    assert store.is_drawn(folder)
    assert {path.name for path in tmp_path.iterdir()} <= {"washer", ".washer.lock"}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("marked", [False, True])
def test_images_of_others_are_neither_used_nor_deleted(marked: bool, tmp_path: Path) -> None:
    """A folder that holds a user's images is refused, even among drawn ones of an older version."""
    folder = tmp_path / "washer"
    if marked:
        store.ensure_category(tmp_path, "washer")
        edit_marker(folder, version=0)
    photograph = folder / "train/good/mine.png"
    photograph.parent.mkdir(parents=True, exist_ok=True)
    photograph.write_bytes(b"precious")
    with pytest.raises(ValueError, match="not drawn by anomalib_vae_attention"):
        EmbeddedAD(root=tmp_path).prepare_data()
    assert photograph.read_bytes() == b"precious"


@pytest.mark.usefixtures("few")
def test_empty_folder_is_filled(tmp_path: Path) -> None:
    """A folder made in advance is no obstacle."""
    (tmp_path / "washer").mkdir()
    assert store.ensure_category(tmp_path, "washer")
    assert store.is_drawn(tmp_path / "washer")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_root_that_is_a_file(below: str, tmp_path: Path) -> None:
    """The message names the argument, the path and the reason."""
    (tmp_path / "file").write_text("kept")
    root = tmp_path / "file" / below
    with pytest.raises(OSError, match=r"root='.*file.*cannot be drawn there \((it is not a folder|Not a directory)\)"):
        EmbeddedAD(root=root).prepare_data()
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(("code", "expected"), [(errno.EACCES, PermissionError), (errno.ENOSPC, OSError)])
def test_root_that_cannot_be_written(
    code: int,
    expected: type[OSError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal of the system keeps its class and number, and gains the argument and the path."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(expected, match=r"root=.*cannot be drawn there") as caught:
        EmbeddedAD(root=tmp_path).prepare_data()
    assert caught.value.errno == code
    assert str(tmp_path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert not list(tmp_path.iterdir())

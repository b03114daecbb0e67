"""Drawn categories on disk: interruptions, several processes, damage, and images that are not ours."""

import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from anomalib.data.datasets.image.mvtecad import MVTecADDataset
from PIL import Image

from anomalib_vae_attention.data import EmbeddedAD, drawing, store

HAS_FORK = "fork" in multiprocessing.get_all_start_methods()
needs_fork = pytest.mark.skipif(not HAS_FORK, reason="the test patches the module that its child processes inherit")


@pytest.mark.usefixtures("fewer")
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_interrupted_drawing_leaves_nothing(
    failure: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a fault halfway the root is as before, but for a lock, and the next use draws."""
    draw, drawn = drawing.draw_image, []

    def fail_at_fourth(category: str, name: drawing.Name) -> drawing.DrawnImage:
        drawn.append(name)
        if len(drawn) > 3:
            raise failure
        return draw(category, name)

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw_image", fail_at_fourth)
        with pytest.raises(failure):
            store.ensure_category(tmp_path, "washer")
    assert len(drawn) == 4
    assert [path.name for path in tmp_path.iterdir()] == [".washer.lock"]
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
@pytest.mark.usefixtures("fewer")
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
@pytest.mark.usefixtures("fewer")
@pytest.mark.parametrize("outdated", [False, True])
def test_processes_that_draw_at_once_all_end_well(
    outdated: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All find that it is missing at once; one draws, the others use its work, and nothing else is left."""
    if outdated:
        store.ensure_category(tmp_path, "washer")
        edit_marker(tmp_path / "washer", version=0)
    barrier = multiprocessing.get_context("fork").Barrier(3)
    choose = drawing.choose_drawing

    def choose_and_wait(category: str) -> object:
        barrier.wait(60)
        return choose(category)

    monkeypatch.setattr(store, "choose_drawing", choose_and_wait)
    codes = run_in_children(lambda _: 10 + store.ensure_category(tmp_path, "washer"), 3)
    assert sorted(codes) == [10, 10, 11]
    assert store.is_drawn(tmp_path / "washer")
    assert {path.name for path in tmp_path.iterdir()} == {"washer", ".washer.lock"}


def edit_marker(folder: Path, **changes: object) -> None:
    """Change entries of the marker file."""
    marker = json.loads((folder / drawing.MARKER).read_text())
    (folder / drawing.MARKER).write_text(json.dumps(marker | changes))


@pytest.mark.usefixtures("fewer")
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


@pytest.mark.usefixtures("fewer")
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


@pytest.mark.usefixtures("fewer")
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
    assert [path.name for path in tmp_path.iterdir()] == [".washer.lock"]

"""Results are written whole or not at all."""

import os
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import UnidentifiedImageError

from anomalib_vae_attention.common.atomic_files import explaining, read_json, replacing, write_json


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "result.json"
    write_json(file, {"a": [1, None]})
    assert read_json(file) == {"a": [1, None]}
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_json(file, 1)
    with pytest.raises(TypeError):
        write_json(file, object())

    def interrupted() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_json(file) == 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or with what was asked for, where that is known; an error that is none of the disk's stays as it is."""
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"result\.json cannot be written \(No space left on device\); .*room") as caught:
        write_json(tmp_path / "result.json", 1)
    assert caught.value.errno == 28

    def save(file: Path) -> None:
        with explaining("--output out cannot be written", "name another"):
            write_json(file, 1)

    with pytest.raises(OSError, match=r"--output out cannot be written \(No space left on device\); name another$"):
        save(tmp_path / "result.json")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"--output out cannot be written \(Not a directory\)"):
        save(tmp_path / "file" / "below" / "result.json")
    with pytest.raises(OSError, match=r"^$"), explaining("--output out cannot be written", "name another"):
        raise UnidentifiedImageError


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut finds the old file or all of the new one."""
    file, settled = tmp_path / "result.json", []

    def fsync(handle: int) -> None:
        settled.append((os.fstat(handle).st_size, file.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(file, 123)
    assert settled == [(4, False)]


@pytest.mark.parametrize("content", ["", '{"status": "do'])
def test_half_a_file_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content, encoding="utf-8")
    assert read_json(tmp_path / "result.json") is None
    assert read_json(tmp_path / "missing.json") is None

"""What the interruption measurement takes for whole, and what it would complain of."""

import time
from pathlib import Path

import interruption
import pytest
import torch
from interruption import UNDISTURBED, check, do, is_same, read


def test_half_a_file_is_found(tmp_path: Path) -> None:
    """A page that differs from the undisturbed one ends the measurement; a temporary file is not looked at."""
    for folder, content in ((UNDISTURBED, "whole"), ("interrupted", "whole")):
        (tmp_path / folder / "reporting" / "good").mkdir(parents=True)
        (tmp_path / folder / "reporting" / "good" / "0.html").write_text(content)
    expected = read(tmp_path / UNDISTURBED, "reporting")
    assert list(expected) == ["good/0.html"]
    (tmp_path / "interrupted" / "reporting" / "good" / ".0-x.html").write_text("wh")
    assert check(tmp_path / "interrupted", "reporting", expected) == 1
    (tmp_path / "interrupted" / "reporting" / "good" / "0.html").write_text("wh")
    with pytest.raises(AssertionError, match=r"good/0\.html .* is not that of a run"):
        check(tmp_path / "interrupted", "reporting", expected)


def test_missing_images_are_found(tmp_path: Path) -> None:
    """A drawn data set is complete or not there."""
    (tmp_path / "drawing").mkdir()
    assert check(tmp_path, "drawing", {"0.png": b"0", "1.png": b"1"}) == 0
    (tmp_path / "drawing" / "0.png").write_bytes(b"0")
    with pytest.raises(AssertionError, match="1 of 2 drawn images are missing"):
        check(tmp_path, "drawing", {"0.png": b"0", "1.png": b"1"})


def test_states_are_compared_to_the_last_bit() -> None:
    """One different tensor, or one that is missing, makes two states differ."""
    state = {"a": torch.zeros(2), "b": torch.ones(())}
    assert is_same({**state}, state)
    assert not is_same({**state, "b": torch.tensor(1 + 2**-23)}, state)
    assert not is_same({"a": state["a"]}, state)


def test_a_step_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that takes longer than it is given is killed; one that fails, or ends well, is told apart."""
    monkeypatch.setitem(interruption.STEPS, "drawing", lambda _: time.sleep(60))
    assert not do("drawing", tmp_path, 0.05)
    monkeypatch.setitem(interruption.STEPS, "drawing", lambda root: (root / "done").touch())
    assert do("drawing", tmp_path)
    assert (tmp_path / "done").exists()
    monkeypatch.setitem(interruption.STEPS, "drawing", lambda _: 1 / 0)
    assert not do("drawing", tmp_path)

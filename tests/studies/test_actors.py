"""The study of Ray's actors: its rates and memory, of what is known."""

import subprocess
import sys
from pathlib import Path

import actors
import pytest


@pytest.mark.parametrize("lag", [0, 1, 3, 9])
def test_rate_of_two_actors_that_write_together_or_in_turn(lag: int) -> None:
    """Each writes 50 rows every 10 s, one of them later: 10 rows per second, whatever the lag."""
    parts = [(100 + 10 * part + late, 50) for part in range(6) for late in (0, lag)]
    begin, end, rate = actors.steady(parts[::-1], 2)
    assert (begin, end) == (100 + lag, 150 + lag)
    assert rate == pytest.approx(10)
    with pytest.raises(ValueError, match="3 parts of 2 actors"):
        actors.steady(parts[:3], 2)


def test_links_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    actors.link_images([tmp_path / "a.png", tmp_path / "b.jpg"], 5, tmp_path / "links")
    found = sorted((tmp_path / "links").iterdir())
    assert [file.read_text(encoding="utf-8") for file in found] == ["a.png", "b.jpg", "a.png", "b.jpg", "a.png"]


def test_a_folder_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        actors.main(["model.xml", str(tmp_path)])
    assert f"{tmp_path}: there is no image there" in capsys.readouterr().err


def test_memory_of_processes_counts_what_they_share_once() -> None:
    """A process that has 64 MiB, and a child that shares them."""
    script = "import mmap, os, sys; m = mmap.mmap(-1, 2**26); m.write(bytes(2**26)); os.fork(); "
    script += "m[:: mmap.PAGESIZE]; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        # A line when each of the two has touched all of it.
        assert [process.stdout.readline() for _ in range(2)] == [b"\n", b"\n"]
        assert 64 < actors.memory_mib(process.pid) < 100
        process.stdin.close()

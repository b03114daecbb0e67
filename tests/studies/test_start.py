"""Every study starts as its documentation says; those without tests of their own are run at a tiny size."""

import mmap
import runpy
from pathlib import Path

import dsprites_speed
import false_positives
import memory
import pandas as pd
import pytest
import torch

STUDIES = Path(__file__).parents[2] / "docs" / "studies"


@pytest.mark.parametrize("script", sorted(STUDIES.glob("*.py")), ids=lambda script: script.stem)
def test_a_study_is_started_as_its_first_lines_say(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert f"usage: {script.name}" in shown
    # argparse shows the docstring, which names the command.
    assert f"python docs/studies/{script.name}" in shown


def test_memory_that_an_action_keeps_is_found() -> None:
    """An action that keeps 1 MiB each time grows by about that; one that keeps nothing by far less."""
    kept: list[mmap.mmap] = []

    def keep() -> None:
        # New pages: what earlier tests freed would serve an allocation of the heap.
        kept.append(mmap.mmap(-1, 2**20))
        kept[-1].write(bytes(2**20))

    growing = memory.repeat("keeps", 40, keep)
    steady = memory.repeat("keeps nothing", 40, lambda: None)
    assert growing["growth_kib"] == pytest.approx(1024, rel=0.2)
    assert abs(steady["growth_kib"]) < 100
    assert len(growing["memory_mib"]) == 10


def test_rates_of_one_split(tiny_root: Path, tmp_path: Path) -> None:
    """One split of five images: every row is a share with its interval, and so few images are never enough."""
    given = ["--category", str(tiny_root / "parts" / "washer"), "--splits", "1", "--rates", "0.1"]
    assert false_positives.main([*given, "--output", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "washer.csv")
    assert len(table) == 2 * 2
    assert table["achieved"].between(0, 1).all()
    assert (table["low"] <= table["achieved"]).all()
    assert (table["achieved"] <= table["high"]).all()
    assert not table["enough images"].any()


def test_intervals_are_those_of_clopper_and_pearson() -> None:
    """5 of 10: .187 to .813 (Clopper and Pearson 1934, 95 %); pixels above a level are counted."""
    assert false_positives.interval(0.5, 10) == pytest.approx((0.187, 0.813), abs=1e-3)
    assert false_positives.interval(0.0, 10) == pytest.approx((0.0, 0.308), abs=1e-3)
    assert false_positives.exceeding(torch.tensor([1, 2, 3, 4]), 1 / 3) == pytest.approx(7 / 10)


def test_every_kind_of_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {name: make for name, make in dsprites_speed.STEPS.items() if "bf16" not in name}
    monkeypatch.setattr(dsprites_speed, "STEPS", kinds)
    seconds = dsprites_speed.measure(batch_size=2, rounds=1, steps=1)
    assert list(seconds) == list(kinds)
    assert all(len(turns) == 1 and turns[0] > 0 for turns in seconds.values())
    assert "aten::convolution" in dsprites_speed.profile("plain PyTorch", batch_size=2, steps=1)

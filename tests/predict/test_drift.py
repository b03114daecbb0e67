"""The command ``vae-attention drift``: limits of the textbook, few false alarms, and since when the line drifted."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomalib_vae_attention import cli
from anomalib_vae_attention.predict.control_chart import LEVEL, TAIL, find_change, has_signals, make_chart

CANS = "12 15 8 10 4 7 16 9 14 10 5 6 17 12 22 8 10 5 13 11 20 18 24 15 9 12 7 13 9 6"
"""Nonconforming cans of orange juice in 30 samples of 50: Montgomery, Introduction to Statistical Quality Control,
table 7.1; also the first 30 rows of ``orangejuice`` in R's package qcc."""


def images(counts: list[int], size: int) -> np.ndarray:
    """Make images of groups that have so many flagged ones."""
    return np.concatenate([np.arange(size) < count for count in counts])


def drift(*arguments: object) -> int:
    return cli.main(["drift", *map(str, arguments)])


def write(file: Path, flagged: np.ndarray) -> Path:
    """Write a table of predictions."""
    labels = np.where(flagged, "defective", "good")
    frame = pd.DataFrame({"path": [f"/line/{index:06}.png" for index in range(len(labels))], "label": labels})
    frame.assign(modified=np.arange(len(labels)) * 60 * 10**9).to_csv(file, index=False)
    return file


def test_the_textbooks_example() -> None:
    """Samples 15 and 23 are out of control; without them, 21 is, too. The mean is .2313, then .2150."""
    counts = [int(count) for count in CANS.split()]
    chart = make_chart(images(counts, 50), size=50, baseline=29)
    trial = make_chart(images(counts, 50), size=50, expected=sum(counts) / 1500)
    assert trial.centre == pytest.approx(0.2313, abs=5e-5)
    assert [int(group) + 1 for group in np.flatnonzero(trial.outside)] == [15, 23]
    # Exact limits are whole counts beside the book's of the normal approximation, .0524 and .4102.
    assert [limit / 50 for limit in trial.limits] == pytest.approx([0.0524, 0.4102], abs=0.03)
    assert chart.counts.tolist() == counts
    rest = [count for index, count in enumerate(counts) if index not in {14, 22}]
    revised = make_chart(images(rest, 50), size=50, expected=sum(rest) / 1400)
    assert revised.centre == pytest.approx(0.2150, abs=5e-5)
    assert rest[19] == 20 > 0.3893 * 50
    assert revised.limits[1] in {19, 20}


@pytest.mark.parametrize(("size", "share"), [(50, 0.2), (200, 0.01), (500, 0.013)])
def test_limits_are_binomial(size: int, share: float) -> None:
    """By sums of exact probabilities: no more than .00135 lies beyond a limit, and more beyond the next count."""
    low, high = make_chart(np.zeros(20 * size, bool), size, expected=share).limits
    p = Fraction(share)
    chance = [float(math.comb(size, k) * p**k * (1 - p) ** (size - k)) for k in range(size + 1)]
    assert sum(chance[high + 1 :]) <= TAIL < sum(chance[high:])
    assert sum(chance[:low]) <= TAIL < sum(chance[: low + 1])


def test_false_alarms_are_as_rare_as_promised() -> None:
    """On lines that do not change, with a baseline of 25 groups or a given share."""
    random, alarms = np.random.default_rng(0), np.zeros(2)
    for _ in range(300):
        flagged = random.random(20_000) < 0.02
        for index, expected in enumerate((None, 0.02)):
            chart = make_chart(flagged, 250, expected=expected)
            alarms[index] += find_change(chart).probability < LEVEL or has_signals(chart)
    # Both rules have the level .01, and the baseline is an estimate.
    assert (alarms / 300 <= 0.03).all()


@pytest.mark.parametrize("later", [0.05, 0.002])
def test_a_step_is_found_where_it_is(later: float) -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        flagged = random.random(20_000) < np.where(np.arange(20_000) < 12_500, 0.02, later)
        change = find_change(make_chart(flagged, 250))
        assert change.probability < LEVEL
        assert abs(change.group - 50) <= 4
        assert change.share == pytest.approx(later, rel=0.7)


def test_the_command_says_since_when_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flagged = np.random.default_rng(2).random(8_000) < np.where(np.arange(8_000) < 6_000, 0.02, 0.1)
    table = write(tmp_path / "predictions.csv", flagged)
    (tmp_path / "run.json").write_text('{"model": "/models/line 3.xml", "sha256": ""}', encoding="utf-8")
    assert drift(table, "--output", tmp_path / "chart.png", "--fail_on_drift") == 3
    printed = capsys.readouterr().out
    (since,) = [line for line in printed.splitlines() if line.startswith("DRIFTED since")]
    assert abs(int(since.split()[3].rstrip(",")) - 6_000) <= 250
    assert "next     vae-attention calibrate '/models/line 3.xml' NEW_GOOD_IMAGES" in printed
    assert Image.open(tmp_path / "chart.png").size[0] > 1000
    # Without the step, and in the order of time where the table has another.
    shuffled = pd.read_csv(table).head(6_000).sample(frac=1, random_state=0)
    shuffled.to_csv(table, index=False)
    assert drift(tmp_path, "--time", "modified", "--output", tmp_path / "chart.png", "--fail_on_drift") == 0
    assert "no drift" in capsys.readouterr().out


def test_a_passing_disturbance_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = [2, 1, 3, 2, 0, 1, 2, 3, 1, 2] * 8
    counts[30:33] = [16, 15, 17]
    assert drift(write(tmp_path / "t.csv", images(counts, 100)), "--group", 100, "--output", tmp_path / "chart") == 0
    assert Image.open(tmp_path / "chart").format == "PNG"
    expected = "DRIFTED for a while: more groups are beyond the limits than by chance (31, 32, 33)"
    assert expected in capsys.readouterr().out


def test_parquet_parts_are_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow comes with the extra ray")
    frame = pd.read_csv(write(tmp_path / "t.csv", images([2] * 30 + [12] * 10, 100)))
    (tmp_path / "parts").mkdir()
    # In the order in which actors happened to finish.
    for number, part in enumerate((frame[2000:], frame[:2000])):
        part.to_parquet(tmp_path / "parts" / f"{number}.parquet")
    # As the engine on Ray leaves it where a folder was named.
    frame[["path"]].to_parquet(tmp_path / "inputs.parquet")
    arguments = ["--group", "100", "--output", tmp_path / "c.png"]
    for source in (tmp_path, tmp_path / "parts", tmp_path / "t.csv"):
        assert drift(source, *arguments) == 0
        assert "DRIFTED since image 3001, /line/003000.png: 12 % are flagged" in capsys.readouterr().out
    assert drift(tmp_path, "--time", "seen") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], "no table of predictions"),
        (["other.csv"], "no table of predictions with columns"),
        (["few.csv"], "at least 100"),
        (["good.csv", "--group", "0"], "--group must be at least 1"),
        (["good.csv", "--group", "500"], "leave none to compare"),
        (["good.csv", "--expected", "0"], "--expected must be between 0 and 1"),
        (["good.csv", "--expected", "1.5"], "--expected must be between 0 and 1"),
    ],
)
def test_errors_name_what_is_wrong(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    write(Path("few.csv"), np.zeros(99, bool))
    write(Path("good.csv"), np.zeros(500, bool))
    assert drift(*arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1

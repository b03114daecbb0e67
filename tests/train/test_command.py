"""The command ``vae-attention train``, from a folder to a model, its thresholds and a report."""

import csv
import shutil
import signal
from pathlib import Path
from unittest.mock import Mock

import pytest

from anomalib_vae_attention import VaeAttention, cli
from anomalib_vae_attention.fit.closed_form import ClosedFormFit
from anomalib_vae_attention.thresholds.conformal import images_needed
from anomalib_vae_attention.train.command import choose_folder, measure
from anomalib_vae_attention.train.fit import lowest_rate


def verdicts(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_good_images_alone(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with a name outside ASCII, from which one image is held out; nobody else's files are touched."""
    good = tmp_path / "Gutteile für Linie 3" / "good"
    shutil.copytree(tiny_root / "parts" / "washer" / "train" / "good", good)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(good)]) == 0
    printed = capsys.readouterr().out
    assert "good images to learn from: 5 (96x96 RGB)" in printed
    assert "Learnt from 4 good images" in printed
    assert "1 others" in printed
    assert "AUROC: undefined" in printed
    assert "train_" not in printed, "figures of the training's course"
    folder = Path("results") / "Gutteile für Linie 3"
    assert printed.splitlines()[-1] == f"next     vae-attention predict '{folder}/model.ckpt' NEW_IMAGES"
    # The greatest normal score is the threshold.
    (row,) = verdicts(folder / "test")
    assert (row["label"], row["truth"]) == ("good", "good")
    assert sorted(file.name for file in folder.iterdir()) == ["model.ckpt", "test"]
    post = VaeAttention.load_from_checkpoint(folder / "model.ckpt").post_processor
    assert post.false_positive_rate == pytest.approx(0.5)
    # Two trainings at once: the second has a folder of its own.
    assert choose_folder(None, good) == Path("results") / "Gutteile für Linie 3-2"
    assert choose_folder(None, good) == Path("results") / "Gutteile für Linie 3-3"


def test_with_defects_and_masks(tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    category, output = tiny_root / "parts" / "washer", tmp_path / "run"
    assert cli.main(["train", str(category), "--output", str(output), "--false_positive_rate", "0.2"]) == 0
    printed = capsys.readouterr().out
    assert "masks paired by name: 4" in printed
    assert "missed: " in printed
    rows = verdicts(output / "test")
    assert sorted(row["truth"] for row in rows) == ["defective"] * 4 + ["good"] * 2
    assert len(list(output.rglob("*.mask.png"))) == 4
    assert cli.main(["train", str(category), "--output", str(output)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert cli.main(["train", str(category), "--output", str(output / "model.ckpt" / "new")]) == 2
    assert "model.ckpt/new cannot be written" in capsys.readouterr().err
    new = tmp_path / "new"
    assert cli.main(["train", str(category), "--output", str(new), "--false_positive_rate", "1.5"]) == 2
    assert "false_positive_rate must be between 0 and 1" in capsys.readouterr().err
    assert not new.exists()


@pytest.mark.parametrize(("alarms", "told"), [(1, False), (17, True)])
def test_more_false_alarms_than_chance_are_told(alarms: int, told: bool) -> None:
    """At a rate of 5 %, one of 18 is to be expected; 17 are not like what was learnt."""
    good = [
        {"label": "defective" if number < alarms else "good", "truth": "good", "score": 0.5} for number in range(18)
    ]
    text = measure([*good, {"label": "defective", "truth": "defective", "score": 0.9}], 0.05)
    assert f"false alarms: {alarms} of 18 good images" in text
    assert ("not like those learnt from" in text) == told


@pytest.mark.parametrize("count", [1, 19, 41, 99, 500])
def test_the_lowest_rate_is_one_that_the_images_can_keep(count: int) -> None:
    rate = lowest_rate(count)
    assert images_needed(rate) <= count
    assert rate >= 0.01


def test_ctrl_c_in_the_fit(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told as everywhere else, whatever Lightning makes of it; and the same command goes on."""
    handler = signal.getsignal(signal.SIGINT)
    arguments = ["train", str(tiny_root / "parts" / "washer" / "train" / "good"), "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        patched.setattr(ClosedFormFit, "step", Mock(side_effect=KeyboardInterrupt))
        assert cli.main(arguments) == 130
        assert not (tmp_path / "run").exists()
        # Nobody pressed Ctrl-C.
        patched.setattr(ClosedFormFit, "step", Mock(side_effect=SystemExit(7)))
        with pytest.raises(SystemExit, match="7"):
            cli.main(arguments)
    signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err.endswith("vae-attention train: interrupted\n")
    assert cli.main(arguments) == 0


def test_a_missing_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "nowhere"]) == 2
    assert "There is no folder nowhere" in capsys.readouterr().err


def test_where_nothing_can_be_written(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told before the training, without --output, too."""
    good = tiny_root / "parts" / "washer" / "train" / "good"
    monkeypatch.chdir("/proc")
    assert cli.main(["train", str(good)]) == 2
    shown = capsys.readouterr()
    assert "--output results/washer cannot be written" in shown.err
    assert not shown.out

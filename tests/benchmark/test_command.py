"""The command from end to end, and what it does when something is in its way."""

import logging
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch

from anomalib_vae_attention import cli
from anomalib_vae_attention.benchmark import jobs
from anomalib_vae_attention.benchmark.cell import EXAMPLES
from anomalib_vae_attention.common.measures import MEASURES


def arguments(root: Path, output: Path, *more: str) -> list[str]:
    """Make the arguments of a small comparison."""
    return ["benchmark", "--data_root", str(root), "--categories", "parts/washer", "--output", str(output), *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--models", "stfpmx"], "models: 'stfpmx' is not available"),
        (["--models", "padim@blocks.9"], "blocks.9"),
        (["--image_size", "0"], "image_size must be at least 1"),
        (["--image_size", "64", "96", "3"], "image_size must be 2 whole numbers"),
        pytest.param(
            ["--accelerator", "gpu"],
            "accelerator: PyTorch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (["--categories", "nut"], "Available in .*: parts/washer"),
    ],
)
def test_a_wrong_argument_is_named(
    more: list[str],
    message: str,
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(arguments(tiny_root, tmp_path, *more)) == 2
    assert pd.Series([capsys.readouterr().err]).str.contains(message).all()


def test_two_models_and_then_a_third_that_fails(
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finished cells are not run again, and the failure of another is reported beside them; sizes need no squares."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    caplog.set_level(logging.INFO)
    more = ["--image_size", "64", "96", "--models", "vae_attention", "padim:8", "padim:8@blocks.2+blocks.4"]
    assert cli.main(arguments(tiny_root, tmp_path, *more, "--runtimes")) == 0
    cells = pd.read_csv(tmp_path / "cells.csv").set_index("model")
    for model in ("vae_attention", "padim:8", "padim:8@blocks.2+blocks.4"):
        row = cells.loc[model]
        assert row["status"] == "done"
        assert all(0 < row[measure] <= 1 for measure in MEASURES)
        assert row["checkpoint_mib"] > 0
        assert row["memory_peak_mib"] >= row["memory_before_mib"] > 0
    # Two columns of images and masks, one of each model.
    assert pd.read_csv(tmp_path / "comparison.csv")["model"].tolist() == ["vae_attention", "padim:8"]
    shown = min(EXAMPLES, cells["test_images"].min())
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("data:image/jpeg") == 5 * shown
    assert not list(tmp_path.glob("cells/*/model.ckpt"))

    finished = {file: file.stat().st_mtime_ns for file in tmp_path.glob("cells/*/result.json")}
    monkeypatch.setattr(jobs.sys, "executable", "/bin/false")
    monkeypatch.setattr("anomalib_vae_attention.benchmark.comparison.prepare_weights", lambda *_: {})
    assert cli.main(arguments(tiny_root, tmp_path, *more, "patchcore", "--runtimes")) == 1
    assert caplog.text.count("done before") == 3
    assert all(file.stat().st_mtime_ns == written for file, written in finished.items())
    cells = pd.read_csv(tmp_path / "cells.csv").set_index("model")
    assert cells["status"].to_dict() == {model: "failed" if model == "patchcore" else "done" for model in cells.index}
    assert cells.loc["patchcore", "error"] == "exit code 1"
    assert Path(cells.loc["patchcore", "log"]).is_file()
    assert "exit code 1" in capsys.readouterr().out

    # The peers stay, whatever becomes of ours.
    assert cli.main(arguments(tiny_root, tmp_path, *more, "--runtimes", "--fresh", "vae_attention")) == 1
    cells = pd.read_csv(tmp_path / "cells.csv").set_index("model")
    assert (cells["status"] == "failed").to_dict() == {model: model == "vae_attention" for model in cells.index}


def test_a_job_that_is_skipped_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    executable = tmp_path / "python"
    skipped = '{"status": "skipped", "error": "needs about 9 GiB"}'
    executable.write_text(f"#!/bin/sh\necho '{skipped}' > $(dirname $3)/{jobs.RESULT}", encoding="utf-8")
    executable.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(executable))
    for times in (1, 2):
        assert jobs.run_job("cell", tmp_path / "job", ("cell.json", {}), {}, "job")["status"] == jobs.SKIPPED
        assert caplog.text.count("job: skipped: needs about 9 GiB") == times


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("#!/bin/sh\necho one; echo 'ValueError: two' >&2; exit 1", "ValueError: two"),
        ("#!/bin/sh\nkill -9 $$", "ended by signal 9, perhaps for lack of memory"),
        ("#!/bin/sh\nexit 3", "exit code 3"),
        ("#!/bin/sh\necho 'no result'", "no result"),
    ],
)
def test_a_job_that_fails_says_why(script: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = tmp_path / "python"
    executable.write_text(script, encoding="utf-8")
    executable.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(executable))
    result = jobs.run_job("cell", tmp_path / "job", ("cell.json", {}), {}, "job")
    assert result["status"] == "failed"
    assert result["error"] == error
    assert Path(result["log"]).is_file()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_is_finished(
    kind: signal.Signals,
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(kind)

    # Put back what the command replaces. A shell has its background jobs ignore an interruption.
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("anomalib_vae_attention.benchmark.comparison.prepare_weights", lambda *_: {})
    monkeypatch.setattr("anomalib_vae_attention.benchmark.comparison.run_cells", interrupt)
    try:
        assert cli.main(arguments(tiny_root, tmp_path)) == 130
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    assert "goes on from there" in caplog.text

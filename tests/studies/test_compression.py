"""Compressed exports are scored and timed beside those that are not."""

from pathlib import Path

import compression
import pytest


def test_every_way_is_measured(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the size for FP16, one accuracy for all, a ratio for each runtime."""
    pytest.importorskip("nncf")
    wanted = {name: compression.COMPRESSIONS[name] for name in ("f32", "FP16", "INT8_PTQ")}
    monkeypatch.setattr(compression, "COMPRESSIONS", wanted)
    table = compression.measure(tiny_root / "parts" / "washer", tmp_path, "gaussian", rounds=1)
    whole, half = table.loc["OpenVINO, f32"], table.loc["OpenVINO, FP16"]
    assert half.mib < 0.7 * whole.mib
    assert whole.ratio == table.loc["ONNX Runtime, f32"].ratio == 1
    assert (table.median_ms > 0).all()
    assert (table.pixel_AUROC - whole.pixel_AUROC).abs().max() < 0.02
    assert table.loc["OpenVINO, INT8_PTQ"].pixel_AUROC != whole.pixel_AUROC
    assert table.good_flagged.between(0, 1).all()


def test_missing_nncf_is_named(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without nncf the command says at once what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("sys.argv", ["compression", str(tiny_root / "parts" / "washer")])
    with pytest.raises(SystemExit):
        compression.main()
    assert "pip install '.[compression]'" in capsys.readouterr().err

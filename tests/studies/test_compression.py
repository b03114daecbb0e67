"""Compressed exports are scored and timed beside those that are not."""

from pathlib import Path

import compression
import pytest


def test_every_way_is_measured(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the size for FP16, at f32's accuracy; near it with 8 bits, less so in ONNX Runtime; a ratio for each."""
    pytest.importorskip("nncf")
    wanted = {name: compression.COMPRESSIONS[name] for name in ("f32", "FP16", "INT8_PTQ")}
    monkeypatch.setattr(compression, "COMPRESSIONS", wanted)
    table = compression.measure(tiny_root / "parts" / "washer", tmp_path, "gaussian", rounds=1)
    whole, half = table.loc["OpenVINO, f32"], table.loc["OpenVINO, FP16"]
    assert half.mib < 0.7 * whole.mib
    assert whole.ratio == table.loc["ONNX Runtime, f32"].ratio == 1
    assert (table.median_ms > 0).all()
    loss = (table.pixel_AUROC - whole.pixel_AUROC).abs()
    assert loss.loc[["OpenVINO, FP16", "ONNX Runtime, f32"]].max() < 0.001
    assert loss.loc["OpenVINO, INT8_PTQ"] < 0.02
    # .043 on these images, .012 in OpenVINO: more than before what the latents leave out counted.
    assert loss.loc["ONNX Runtime, INT8_PTQ"] < 0.06
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

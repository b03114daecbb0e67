"""Compressed exports are scored and timed beside the one that is not; without nncf, which INT8 alone needs."""

import shutil
from pathlib import Path

import compression
import pytest

from anomalib_vae_attention.benchmark.runtimes import Run


def test_compressions_are_measured_beside_none(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP16 takes less room and ranks the images as before; one that OpenVINO refuses has a row with the error."""
    choices = {name: compression.COMPRESSIONS[name] for name in ("none (f32)", "FP16")}
    monkeypatch.setattr(compression, "COMPRESSIONS", {**choices, "refused": choices["FP16"]})
    original, export = compression.open_openvino, compression.VaeAttention.to_openvino

    def export_once(model: object, root: Path, **options: object) -> Path:
        if root.name != "refused":
            return export(model, root, **options)
        # An export takes half a minute.
        shutil.copytree(root.with_name("FP16"), root)
        return next(root.rglob("*.xml"))

    def refuse(file: Path, shape: tuple[int, int, int], threads: int) -> Run:
        if "refused" in file.parts:
            msg = "Exception from core\nCheck failed"
            raise RuntimeError(msg)
        return original(file, shape, threads)

    monkeypatch.setattr(compression, "open_openvino", refuse)
    monkeypatch.setattr(compression.VaeAttention, "to_openvino", export_once)
    table = compression.measure(tiny_root / "parts" / "washer", tmp_path, "gaussian", rounds=1)
    whole, half = table.loc["none (f32)"], table.loc["FP16"]
    assert half.mib < 0.7 * whole.mib
    assert half.pixel_AUROC == pytest.approx(whole.pixel_AUROC, abs=0.01)
    assert whole.ratio == 1
    assert half.median_ms > 0
    assert table.loc["refused", "error"] == "Check failed"
    assert table.loc["refused", ["pixel_AUROC", "median_ms"]].isna().all()


def test_missing_nncf_is_named(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without nncf the command says at once what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("sys.argv", ["compression", str(tiny_root / "parts" / "washer")])
    with pytest.raises(SystemExit):
        compression.main()
    assert "pip install '.[compression]'" in capsys.readouterr().err

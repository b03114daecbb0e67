"""The study of what each decision brings: the model that it fits is the one that training fits."""

from pathlib import Path

import ablation
import pytest
import torch
from support import make_engine

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.benchmark.data import category_datamodule


def test_the_default_variant_is_the_model(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On layers in half precision, scores are those of a training; results are kept and printed side by side."""
    category = tiny_root / "parts" / "washer"
    command = ["ablation.py", str(category), "--cache", str(tmp_path), "--variants", "default", "64 latents"]
    monkeypatch.setattr("sys.argv", command)
    with torch.no_grad():
        ablation.main()
        first = capsys.readouterr().out
        monkeypatch.setattr(ablation, "measure", lambda *_: pytest.fail("computed again"))
        ablation.main()
        assert capsys.readouterr().out == first
        assert "64 latents" in first
        images = ablation.layers_of(category, tmp_path)
        ours = ablation.fit(images.train, {})
    model = VaeAttention(visualizer=False)
    make_engine(tmp_path).fit(model=model, datamodule=category_datamodule(category))
    theirs = model.model
    assert float(ours.energy_scale) == pytest.approx(float(theirs.energy_scale), rel=0.01)
    assert float(ours.noise_weight) == pytest.approx(float(theirs.noise_weight), rel=0.01)


def test_energy_alone_has_no_attention() -> None:
    """The map of that variant is the energy's: the attention of every layer is zero, of its size."""
    layers = [torch.randn(2, 3, 4, 5), torch.randn(2, 7, 2, 2)]
    assert [tuple(part.shape) for part in ablation._no_attention(layers)] == [(2, 4, 5), (2, 2, 2)]
    assert not any(part.any() for part in ablation._no_attention(layers))

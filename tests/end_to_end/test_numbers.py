"""Numbers stay numbers: precisions agree, and images that leave a covariance without full rank do no harm."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from support import SIZE, folder, make_engine, small_model, write_images

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.reference import REFERENCES


def predict(model: VaeAttention, datamodule: EmbeddedAD, root: Path, precision: str) -> dict[str, torch.Tensor]:
    """Fit and predict with one of Lightning's precisions."""
    seed_everything(0)
    engine = make_engine(root, precision=precision)
    engine.fit(model=model, datamodule=datamodule)
    batches = engine.predict(model=model, datamodule=datamodule)
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in ("pred_score", "anomaly_map")}


@pytest.mark.parametrize("reference", REFERENCES)
def test_precisions_agree(reference: str, small_data: EmbeddedAD, tmp_path: Path) -> None:
    """Fitted and used in bf16-mixed and in float64, the model gives the scores and maps of float32."""
    expected = predict(small_model(reference=reference), small_data, tmp_path, "32-true")
    for precision, tolerance in (("bf16-mixed", 1e-5), ("64-true", 2e-3)):
        model = small_model(reference=reference)
        found = predict(model, small_data, tmp_path / precision, precision)
        for name, tensor in found.items():
            assert tensor.isfinite().all()
            torch.testing.assert_close(tensor.float(), expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_half_precision_is_refused(precision: str, small_data: EmbeddedAD, tmp_path: Path) -> None:
    """Weights in 16 bits, with which there would be little but rounding errors, are an error."""
    with pytest.raises(ValueError, match="use '32-true'"):
        make_engine(tmp_path, precision=precision).fit(model=small_model(), datamodule=small_data)


def write_uniform(root: Path, levels: list[int], size: tuple[int, int] = SIZE) -> None:
    """Write good images of one grey level each, and one of noise to be told from them."""
    write_images(root, good=0, bad=1, size=size)
    for index, level in enumerate(levels):
        Image.fromarray(np.full((*size, 3), level, np.uint8)).save(root / "good" / f"{index}.png")


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(
    ("levels", "side"),
    [
        pytest.param([0, 0, 0, 0, 0], 64, id="black"),
        pytest.param([100, 100, 100], 64, id="copies"),
        pytest.param([0, 128, 255], 64, id="flat"),
        pytest.param([30, 60], 32, id="fewer-cells-than-latents"),
    ],
)
def test_without_full_rank(levels: list[int], side: int, reference: str, tmp_path: Path) -> None:
    """Copies, flat images and fewer cells than latents give a finite state, finite scores, and noise scores most."""
    write_uniform(tmp_path / "data", levels)
    datamodule = folder(tmp_path / "data", normal_test_dir="good", val_split_mode="same_as_test")
    model, engine = small_model(size=(side, side), reference=reference), make_engine(tmp_path / "results")
    engine.fit(model=model, datamodule=datamodule)
    for name, tensor in model.model.state_dict().items():
        assert tensor.isfinite().all(), name
    model.eval()
    noise = torch.rand(1, 3, side, side)
    flat = torch.full((1, 3, side, side), levels[0] / 255)
    with torch.no_grad():
        foreign, own = model.model(model.pre_processor(noise)), model.model(model.pre_processor(flat))
    for prediction in (foreign, own):
        assert prediction.pred_score.isfinite().all()
        assert prediction.anomaly_map.isfinite().all()
    assert foreign.pred_score > own.pred_score
    assert foreign.anomaly_map.mean() > own.anomaly_map.mean()

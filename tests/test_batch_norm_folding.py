"""Folding batch norms changes no output, whatever the architecture does with its convolutions."""

import copy

import pytest
import timm
import torch
from torch import nn

from anomalib_vae_attention.batch_norm_folding import fold_batch_norms, foldable, round_weights
from anomalib_vae_attention.torch_model import VaeAttentionModel

SHAPE = (3, 64, 64)


def with_statistics(network: nn.Module) -> nn.Module:
    """Give every batch norm statistics and weights of its own, so that a wrong fold shows; in double precision."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, std=0.1)
    return network.double().eval().requires_grad_(requires_grad=False)


def count(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


# In resnetv2 and densenet norms come before convolutions, and some read sums; repvgg has norms without a convolution.
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("tf_efficientnet_lite0", 0),
        ("resnet18", 0),
        ("mobilenetv3_small_100", 0),
        ("vgg11_bn", 0),
        ("dla34", 0),
        ("resnetv2_50", 16),
        ("densenet121", 62),
        ("repvgg_a0", 17),
    ],
)
def test_outputs_stay(name: str, left: int) -> None:
    """A timm network gives the same features with as many batch norms left as need to be."""
    torch.manual_seed(0)
    network = with_statistics(timm.create_model(name, pretrained=False, features_only=True))
    folded = copy.deepcopy(network)
    fold_batch_norms(folded, SHAPE)
    assert count(folded) == left < count(network)
    image = torch.randn(2, *SHAPE, dtype=torch.float64)
    for expected, layer in zip(network(image), folded(image), strict=True):
        torch.testing.assert_close(layer, expected, rtol=1e-9, atol=1e-9)


class Net(nn.Module):
    """One convolution and one batch norm, put together in a given way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.way = way

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        features = self.conv(image)
        if self.way == "sum":
            return features + self.norm(features)
        if self.way == "output":
            return [features, self.norm(features)]
        if self.way == "in place":
            return self.norm(features.relu_())
        if self.way == "joined":
            return self.norm(torch.cat([features]))
        if self.way == "twice":
            return self.norm(features) + self.conv(image + 1)
        if self.way == "norm twice":
            return self.norm(features) + self.norm(image)
        return self.norm(features)


@pytest.mark.parametrize(
    ("way", "folds"),
    [
        ("one after the other", True),
        ("sum", False),
        ("output", False),
        ("in place", False),
        ("joined", False),
        ("twice", False),
        ("norm twice", False),
    ],
)
def test_what_is_read_twice_is_left_alone(way: str, folds: bool) -> None:
    network = with_statistics(Net(way))
    assert foldable(network, SHAPE) == ([("conv", "norm")] if folds else [])


def test_model_has_no_batch_norm_left() -> None:
    """The default backbone is folded, and whether it has weights does not change what a checkpoint holds."""
    trained, random = (VaeAttentionModel(pre_trained=flag) for flag in (True, False))
    assert count(trained.backbone) == 0
    assert {name: tensor.shape for name, tensor in trained.state_dict().items()} == {
        name: tensor.shape for name, tensor in random.state_dict().items()
    }


def test_rounded_weights_are_the_same_in_lower_precision() -> None:
    """Those of products, by at most half a step of bfloat16; what is added in single precision stays as it was."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    round_weights(network)
    after = dict(network.named_parameters())
    assert torch.equal(after["0.weight"].bfloat16().float(), after["0.weight"])
    torch.testing.assert_close(after["0.weight"], before["0.weight"], rtol=2**-8, atol=0)
    assert not torch.equal(after["0.weight"], before["0.weight"])
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(after[name], before[name])

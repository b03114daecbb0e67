"""The adjoint of every kind of layer against autograd, over shapes, strides and paddings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anomalib_vae_attention.image_vae.adjoints import Add, Offset, adjoint

SCORES = 3


def check(layer: nn.Module, *inputs: torch.Tensor) -> None:
    """Demand autograd's gradients of three random scores an image, to 1e-5 of their size."""
    layer.eval()
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    output = layer(*inputs)
    gradient = torch.randn(len(output), SCORES, *output.shape[1:])
    with torch.no_grad():
        ours = adjoint(layer, gradient, inputs, output)
    theirs = [torch.autograd.grad(output, inputs, gradient[:, score], retain_graph=True) for score in range(SCORES)]
    for mine, parts in zip(ours, zip(*theirs, strict=True), strict=True):
        expected = torch.stack(parts, 1)
        assert mine.shape == expected.shape
        assert (mine - expected).norm() <= 1e-5 * expected.norm()


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[dict, tuple[int, int]]:
    """Draw arguments of a convolution and a size of images that it can take."""
    kernel, stride, dilation = (draw(st.tuples(st.integers(1, most), st.integers(1, most))) for most in (4, 3, 2))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    groups = draw(st.sampled_from([1, 2]))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    reach = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in range(2)]
    least = [max(1, reach[axis] - 2 * padding[axis]) for axis in range(2)]
    size = tuple(draw(st.integers(least[axis], least[axis] + 7)) for axis in range(2))
    arguments = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return {"in_channels": channels[0], "out_channels": channels[1], "bias": draw(st.booleans()), **arguments}, size


@settings(max_examples=60, deadline=None)
@given(drawn=convolutions(), batch=st.integers(1, 2))
def test_convolution(drawn: tuple[dict, tuple[int, int]], batch: int) -> None:
    arguments, size = drawn
    check(nn.Conv2d(**arguments), torch.randn(batch, arguments["in_channels"], *size))


@settings(max_examples=60, deadline=None)
@given(drawn=convolutions(), batch=st.integers(1, 2), data=st.data())
def test_transposed_convolution(drawn: tuple[dict, tuple[int, int]], batch: int, data: st.DataObject) -> None:
    arguments, size = drawn
    limits = [max(arguments["stride"][axis], arguments["dilation"][axis]) - 1 for axis in range(2)]
    extra = tuple(data.draw(st.integers(0, limit)) for limit in limits)
    layer = nn.ConvTranspose2d(**arguments, output_padding=extra)
    grown = [
        (size[axis] - 1) * layer.stride[axis]
        - 2 * layer.padding[axis]
        + layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        + extra[axis]
        + 1
        for axis in range(2)
    ]
    if min(grown) >= 1:
        check(layer, torch.randn(batch, arguments["in_channels"], *size))


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    data=st.data(),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    levels=st.sampled_from([2, 1000]),
    ceil=st.booleans(),
)
def test_max_pooling(
    kernel: int, stride: int, data: st.DataObject, size: tuple[int, int], levels: int, ceil: bool
) -> None:
    """Of equal elements, which are many where there are two levels only, the first gets the gradient."""
    padding = data.draw(st.integers(0, kernel // 2))
    image = torch.randint(levels, (2, 3, *size)).float()
    check(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil), image)


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    factors=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    affine=st.booleans(),
)
def test_other_layers(size: tuple[int, int], factors: tuple[int, int], affine: bool) -> None:
    image = torch.randn(2, 3, *size)
    norm = nn.BatchNorm2d(3, affine=affine)
    norm.train()
    norm(torch.randn(4, 3, 5, 5) * torch.rand(3, 1, 1))
    if affine:
        nn.init.normal_(norm.weight)
    count = size[0] * size[1]
    for layer in (norm, nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()):
        check(layer, image.clone())
    check(nn.Upsample(scale_factor=tuple(float(factor) for factor in factors)), image.clone())
    check(nn.Unflatten(1, (3, *size)), torch.randn(2, 3 * count))
    check(nn.Linear(3 * count, 5), torch.randn(2, 3 * count))
    check(Add(), image.clone(), torch.randn(2, 3, *size))
    check(Offset((3, *size)), image.clone())


def test_a_layer_without_an_adjoint_is_named() -> None:
    image = torch.randn(1, 1, 2, 2)
    with pytest.raises(TypeError, match="no adjoint of GELU"):
        adjoint(nn.GELU(), image[:, None], (image,), image)
    with pytest.raises(TypeError, match="1x1 only"):
        check(nn.AdaptiveAvgPool2d(2), torch.randn(1, 1, 4, 4))
    with pytest.raises(TypeError, match="whole factors"):
        check(nn.Upsample(size=(5, 5)), torch.randn(1, 1, 3, 3))

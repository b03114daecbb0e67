"""Adjoints (vector-Jacobian products) of the layers that image VAEs are made of, without autograd.

Each is the transpose of the layer's derivative as ordinary tensor operations: it runs where gradients are off, and
exports. Gradients have a second dimension, for several scores per image: what has shape ``(B, ...)`` has gradients of
shape ``(B, P, ...)``.
"""

from functools import singledispatch
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

Tensors = tuple[torch.Tensor, ...]


class Add(nn.Module):
    """The addition at the end of a residual block."""

    @staticmethod
    def forward(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Add two tensors of one shape."""
        return first + second


class Offset(nn.Module):
    """An image that is added to every image: what a decoder draws whatever its latents.

    Args:
        shape: Channels, height and width of the image.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Add the offset to images of shape ``(B, C, H, W)``."""
        return image + self.value


@singledispatch
def adjoint(layer: nn.Module, gradient: torch.Tensor, inputs: Tensors, output: torch.Tensor) -> Tensors:
    """Carry gradients back through a layer in evaluation mode.

    Args:
        layer: The layer.
        gradient: Gradients by its output, of shape ``(B, P, ...)``.
        inputs: What it was given, each of shape ``(B, ...)``.
        output: What it made of that, of shape ``(B, ...)``.

    Returns:
        Gradients by each of its inputs, of shape ``(B, P, ...)``.

    Raises:
        TypeError: If no adjoint of such a layer is known.
    """
    del gradient, inputs, output
    msg = f"There is no adjoint of {layer}: add one to {__name__}."
    raise TypeError(msg)


def _per_image(flat: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Undo ``gradient.flatten(0, 1)``; an export fixes the number of scores, not that of images."""
    return flat.unflatten(0, (-1, gradient.shape[1]))


@adjoint.register
def _(_layer: Add, gradient: torch.Tensor, *_context: object) -> Tensors:
    return gradient, gradient


@adjoint.register
def _(_layer: Offset, gradient: torch.Tensor, *_context: object) -> Tensors:
    return (gradient,)


@adjoint.register
def _(layer: nn.Conv2d, gradient: torch.Tensor, inputs: Tensors, output: torch.Tensor) -> Tensors:
    """A convolution's adjoint is the transposed convolution; rows that no window reached get 0."""
    stride, dilation, padding = layer.stride, layer.dilation, cast("tuple[int, int]", layer.padding)
    missing = [
        inputs[0].shape[2 + axis]
        - ((output.shape[2 + axis] - 1) * stride[axis] - 2 * padding[axis])
        - dilation[axis] * (layer.kernel_size[axis] - 1)
        - 1
        for axis in range(2)
    ]
    back = F.conv_transpose2d(
        gradient.flatten(0, 1), layer.weight, None, stride, padding, missing, layer.groups, dilation=dilation
    )
    return (_per_image(back, gradient),)


@adjoint.register
def _(layer: nn.ConvTranspose2d, gradient: torch.Tensor, inputs: Tensors, _output: torch.Tensor) -> Tensors:
    """A transposed convolution's adjoint is the convolution."""
    padding = cast("tuple[int, int]", layer.padding)
    back = F.conv2d(gradient.flatten(0, 1), layer.weight, None, layer.stride, padding, layer.dilation, layer.groups)
    height, width = inputs[0].shape[2:]
    # An output padding wider than the stride makes one window too many.
    return (_per_image(back[:, :, :height, :width], gradient),)


@adjoint.register
def _(layer: nn.BatchNorm2d, gradient: torch.Tensor, *_context: object) -> Tensors:
    """With its running statistics, batch normalisation is a factor per channel."""
    scale = (cast("torch.Tensor", layer.running_var) + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight
    return (gradient * scale[:, None, None],)


@adjoint.register
def _(_layer: nn.ReLU, gradient: torch.Tensor, _inputs: Tensors, output: torch.Tensor) -> Tensors:
    return (gradient * (output > 0)[:, None],)


@adjoint.register
def _(layer: nn.MaxPool2d, gradient: torch.Tensor, inputs: Tensors, _output: torch.Tensor) -> Tensors:
    """The gradient goes to each window's greatest element; of equal ones to the first."""
    options = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    _, place = F.max_pool2d(inputs[0], *options, return_indices=True)
    height, width = inputs[0].shape[2:]
    image = gradient.new_zeros(*gradient.shape[:3], height * width)
    image = image.scatter_add(3, place.flatten(2)[:, None].expand(-1, gradient.shape[1], -1, -1), gradient.flatten(3))
    return (image.unflatten(3, (height, width)),)


@adjoint.register
def _(_layer: nn.AdaptiveAvgPool2d, gradient: torch.Tensor, inputs: Tensors, output: torch.Tensor) -> Tensors:
    """The mean over the whole image: the same share everywhere."""
    if output.shape[2:] != (1, 1):
        msg = "The adjoint of nn.AdaptiveAvgPool2d is known for an output of 1x1 only."
        raise TypeError(msg)
    height, width = inputs[0].shape[2:]
    return ((gradient / (height * width)).expand(-1, -1, -1, height, width),)


@adjoint.register
def _(layer: nn.Upsample, gradient: torch.Tensor, inputs: Tensors, output: torch.Tensor) -> Tensors:
    """Gradients of a pixel's copies add up (nearest neighbour, whole factors)."""
    factors = [output.shape[axis] // inputs[0].shape[axis] for axis in (2, 3)]
    if layer.mode != "nearest" or any(output.shape[axis] % inputs[0].shape[axis] for axis in (2, 3)):
        msg = "The adjoint of nn.Upsample is known for the mode 'nearest' and whole factors only."
        raise TypeError(msg)
    back = F.avg_pool2d(gradient.flatten(0, 1), factors) * (factors[0] * factors[1])
    return (_per_image(back, gradient),)


@adjoint.register
def _(layer: nn.Linear, gradient: torch.Tensor, *_context: object) -> Tensors:
    return (gradient @ layer.weight,)


@adjoint.register(nn.Flatten)
@adjoint.register(nn.Unflatten)
def _(_layer: nn.Module, gradient: torch.Tensor, inputs: Tensors, _output: torch.Tensor) -> Tensors:
    return (gradient.reshape(-1, gradient.shape[1], *inputs[0].shape[1:]),)

"""torchvision's ResNet-18, trained from scratch, as the encoder of an image VAE, and its mirror image as the decoder.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016). Liu et al. (CVPR 2020) train such a VAE on MVTec
AD at 256x256 with 32 latents.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock, ResNet

from .adjoints import Add, Offset
from .network import Network, Step, chain

STRIDE = 32
"""Pixels of the image to one cell of the last stage."""
WIDTHS = (64, 128, 256, 512)
"""Channels of the four stages."""
LEAST_BRIGHTNESS = 0.01
"""Least distance of the first reconstruction's pixels from black and white, where the sigmoid's gradient vanishes."""


def check_size(size: Sequence[int]) -> None:
    """Raise a ``ValueError`` if the network cannot take images of this height and width."""
    if any(side < STRIDE or side % STRIDE for side in size):
        msg = f"input_size: vae='resnet18' takes multiples of {STRIDE} pixels, such as 256x256, not {tuple(size)}."
        raise ValueError(msg)


Layers = Sequence[tuple[str, nn.Module]]


class _DecoderBlock(nn.Module):
    """The layers of a residual block of the decoder; where it has fewer channels after it, it doubles the size."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, before, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(before)
        self.conv2 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        changed = before != after
        self.upsample = nn.Upsample(scale_factor=2) if changed else None
        self.shortcut = nn.Conv2d(before, after, 1, bias=False) if changed else None
        self.shortcut_bn = nn.BatchNorm2d(after) if changed else None

    def steps(self, name: str, start: str) -> list[Step]:
        """Return the steps of the block; the shortcut's 1x1 convolution is before the enlargement: it is the same."""
        if self.upsample is None or self.shortcut is None or self.shortcut_bn is None:
            return _residual_steps(name, start, self)
        beside = [("shortcut", self.shortcut), ("shortcut_bn", self.shortcut_bn), ("shortcut_up", self.upsample)]
        return _residual_steps(name, start, self, [("upsample", self.upsample)], beside)


def _residual_steps(
    name: str, start: str, block: BasicBlock | _DecoderBlock, inner: Layers = (), beside: Layers = ()
) -> list[Step]:
    """Return the steps of a residual block that is given the output ``start``.

    It may have ``inner`` layers between the two halves of its main path, and layers of its shortcut, ``beside`` it.
    """
    before: Layers = [("conv1", block.conv1), ("bn1", block.bn1), ("relu1", nn.ReLU())]
    main = [*before, *inner, ("conv2", block.conv2), ("bn2", block.bn2)]
    path, shortcut = (chain([(f"{name}.{layer}", module) for layer, module in part], start) for part in (main, beside))
    summed = Step(f"{name}.add", Add(), (path[-1].name, shortcut[-1].name if shortcut else start))
    return [*path, *shortcut, summed, Step(f"{name}.relu2", nn.ReLU(), (summed.name,))]


class ResNetEncoder(Network):
    """torchvision's ResNet-18, whose last layer gives means and log variances of the posterior.

    Layers have torchvision's names; a block's two ReLU, one module in torchvision, are ``relu1`` and ``relu2``.

    Args:
        channels: Channels of the image.
        latent_dim: Number of latents ``d``.
    """

    def __init__(self, channels: int, latent_dim: int) -> None:
        super().__init__()
        source: ResNet = resnet18(weights=None, num_classes=2 * latent_dim)
        if channels != 3:
            source.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(source.conv1.weight, mode="fan_out", nonlinearity="relu")
        for name, child in source.named_children():
            self.add_module(name, child)
        # In-place ReLU would overwrite the activations before them.
        self.apply(lambda layer: setattr(layer, "inplace", False) if isinstance(layer, nn.ReLU) else None)
        steps = chain((name, getattr(source, name)) for name in ("conv1", "bn1", "relu", "maxpool"))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for index, block in enumerate(getattr(source, stage)):
                beside = [(f"downsample.{number}", layer) for number, layer in enumerate(block.downsample or ())]
                steps += _residual_steps(f"{stage}.{index}", steps[-1].name, block, beside=beside)
        self.map_layers = [step.name for step in steps]
        end = [("avgpool", source.avgpool), ("flatten", nn.Flatten()), ("fc", source.fc)]
        self.steps = steps + chain(end, steps[-1].name)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return means and log variances, of shape ``(B, 2 d)``.

        Raises:
            ValueError: If batch normalisation is to be trained on a single value per channel.
        """
        if self.training and len(image) == 1 and tuple(image.shape[-2:]) == (STRIDE, STRIDE):
            msg = (
                f"vae='resnet18' cannot learn from a batch of one image of {STRIDE}x{STRIDE} pixels: choose a "
                "train_batch_size that leaves no single image for the last batch, or a greater input_size."
            )
            raise ValueError(msg)
        return super().forward(image)


class ResNetDecoder(Network):
    """The encoder backwards: linear, residual blocks with enlargement for strides and pooling, 7x7 to the image.

    The encoder averages over the cells of its last stage, but here the linear layer has outputs of its own for every
    cell: of copies, only the borders of images could tell cells apart. Last comes an :class:`Offset`, so that nothing
    that all images have in common has to be learnt; see :meth:`start_from`.

    Args:
        channels: Channels of the image.
        latent_dim: Number of latents ``d``.
        size: Height and width of the image, multiples of 32.
    """

    def __init__(self, channels: int, latent_dim: int, size: Sequence[int]) -> None:
        super().__init__()
        cells = size[0] // STRIDE, size[1] // STRIDE
        widths = WIDTHS[::-1]
        self.fc = nn.Linear(latent_dim, widths[0] * cells[0] * cells[1])
        self.conv = nn.ConvTranspose2d(WIDTHS[0], channels, 7, 2, 3, output_padding=1)
        steps = chain([("fc", self.fc), ("relu", nn.ReLU()), ("unflatten", nn.Unflatten(1, (widths[0], *cells)))])
        self.stages = nn.ModuleDict()
        for number, (width, after) in enumerate(pairwise([*widths, widths[-1]])):
            stage = f"layer{len(widths) - number}"
            blocks = [_DecoderBlock(width, width), _DecoderBlock(width, after)]
            self.stages[stage] = nn.ModuleList(blocks)
            for index, block in enumerate(blocks):
                steps += block.steps(f"{stage}.{index}", steps[-1].name)
        self.offset = Offset((channels, *size))
        end = [("upsample", nn.Upsample(scale_factor=2)), ("conv", self.conv), ("offset", self.offset)]
        self.steps = steps + chain(end, steps[-1].name)

    @torch.no_grad()
    def start_from(self, image: torch.Tensor) -> None:
        """Make an image what is decoded from any latent; training adds what latents say.

        Args:
            image: The mean of the normal images, of shape ``(C, H, W)``, pixels from 0 to 1.
        """
        self.offset.value.copy_(image.clamp(LEAST_BRIGHTNESS, 1 - LEAST_BRIGHTNESS).logit())
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

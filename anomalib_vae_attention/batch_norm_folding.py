"""A network made ready for inference: batch norms folded into convolutions, weights that all runtimes hold alike."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class _UseRecorder(TorchFunctionMode):
    """Records which batch norm reads which convolution's output, and how often each tensor is read."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: Counter[int] = Counter()
        self.weight_of: dict[int, int] = {}
        """Identity of each convolution's weight, by that of its output."""
        self.normalised: list[tuple[int, int]] = []
        """Identities of a batch norm's input and of its running mean."""
        self._kept: list[Any] = []

    def __torch_function__(  # noqa: PLW3201 - torch calls it by this name
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        output = function(*args, **(kwargs or {}))
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(output)):
            return output
        # Identities are unique only among living tensors.
        self._kept += [args, kwargs, output]
        self.uses.update(id(leaf) for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, torch.Tensor))
        if function is nn.functional.conv2d:
            self.weight_of[id(output)] = id(args[1])
        elif function is nn.functional.batch_norm:
            self.normalised.append((id(args[0]), id(args[1])))
        return output


def foldable(network: nn.Module, image_shape: Sequence[int]) -> list[tuple[str, str]]:
    """Find the batch norms that can be folded, from one forward pass without data.

    Args:
        network: Network in evaluation mode, from images to a tensor or a collection of them.
        image_shape: Shape of an image that it takes, ``(3, H, W)``.

    Returns:
        Names of each two-dimensional convolution whose output only one batch norm reads, and of that batch norm.
    """
    if not any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        return []
    network = copy.deepcopy(network).to("meta", torch.float32)
    with _UseRecorder() as recorder, torch.no_grad():
        output = network(torch.zeros(1, *image_shape, device="meta"))
    recorder.uses.update(id(leaf) for leaf in tree_leaves(output))
    convolutions = {id(part.weight): name for name, part in network.named_modules() if isinstance(part, nn.Conv2d)}
    norms = {id(part.running_mean): name for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)}
    pairs = [(recorder.weight_of.get(read, 0), read, mean) for read, mean in recorder.normalised]
    return [
        (convolutions[weight], norms[mean])
        for weight, read, mean in pairs
        # What is read twice is also needed as it was.
        if weight in convolutions
        and mean in norms
        and recorder.uses[weight] == recorder.uses[read] == recorder.uses[mean] == 1
    ]


def fold_batch_norms(network: nn.Module, image_shape: Sequence[int]) -> None:
    """Fold batch norms into the convolutions before them, in place.

    In evaluation mode a batch norm is a scale and an offset per channel, which the convolution's weight and bias can
    take on (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, section 3.2). Which ones are folded depends on the architecture alone: checkpoints of one
    folded network fit another. The arguments are those of :func:`foldable`.
    """
    for convolution, norm in foldable(network, image_shape):
        before, after = cast("nn.Conv2d", network.get_submodule(convolution)), network.get_submodule(norm)
        network.set_submodule(convolution, fuse_conv_bn_eval(before, cast("nn.BatchNorm2d", after)))
        # timm's have the activation in them.
        network.set_submodule(norm, getattr(after, "act", nn.Identity()))


@torch.no_grad()
def round_weights(network: nn.Module) -> None:
    """Round the weights of convolutions and linear layers to values that bfloat16 holds, in place.

    OpenVINO computes in bfloat16 by default where the processor has it. Rounded there alone, weights would shift the
    features of every image alike, and thresholds would no longer be where they were set. Half precision holds these
    values, too.
    """
    for weight in network.parameters():
        if weight.ndim > 1:
            weight.copy_(weight.bfloat16())

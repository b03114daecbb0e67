"""Weights as the stacked networks multiply by them: matrices from input to output, their pixels in our order.

Each layout only permutes the weights of a run, so that it can be undone for any of them.
"""

from collections.abc import Mapping

import torch

from anomalib_vae_attention.dsprites.networks import CHANNELS, SMALLEST

Weights = Mapping[str, torch.Tensor]
"""Weights by their names in the Lightning modules, with the dimension ``R`` of the runs in front."""

GRID = (CHANNELS[-1], SMALLEST, SMALLEST)


def arrange(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Bring a weight of encoder or decoder into the layout that the stacked networks use.

    Args:
        name: Its name in the Lightning module.
        weight: Shape ``(R, ...)``.

    Returns:
        A contiguous tensor of the same elements: of convolutions as :mod:`.convolution` says, of linear layers
        ``(R, input, output)``; what is flattened has the channels last. Other biases stay.
    """
    if name == "decoder.linears.1.bias":
        arranged = weight.unflatten(1, GRID).permute(0, 2, 3, 1).flatten(1)
    elif name == "encoder.hidden.weight":
        arranged = weight.unflatten(2, GRID).permute(0, 3, 4, 2, 1).flatten(1, 3)
    elif name == "decoder.linears.1.weight":
        arranged = weight.unflatten(1, GRID).permute(0, 4, 2, 3, 1).flatten(2)
    elif name.endswith("bias"):
        arranged = weight
    elif "convolutions" not in name:
        arranged = weight.mT
    else:
        arranged = _arrange_convolution(weight, is_transposed=name.startswith("decoder"))
    return arranged.contiguous()


def _arrange_convolution(weight: torch.Tensor, *, is_transposed: bool) -> torch.Tensor:
    """Sort weights ``(R, C, D, 4, 4)`` into a matrix from parts to blocks, or from blocks to parts."""
    if weight.shape[2] == 1:
        return weight.flatten(2) if is_transposed else weight.flatten(2).mT
    # Row 2p + a of a window is row a of block p.
    taps = weight.unflatten(3, (2, 2)).unflatten(5, (2, 2))
    matrix = taps.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 6).flatten(1, 3)
    return matrix if is_transposed else matrix.mT


def restore(name: str, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Undo :func:`arrange`.

    Args:
        name: The weight's name.
        weight: What was made of it, shape ``(R, ...)``.
        shape: Shape that it has in the Lightning module.

    Returns:
        Shape ``(R, *shape)``.
    """
    places = arrange(name, torch.arange(shape.numel(), device=weight.device).view(1, *shape)).flatten()
    restored = weight.new_empty(len(weight), shape.numel())
    restored[:, places] = weight.flatten(1)
    return restored.view(-1, *shape)

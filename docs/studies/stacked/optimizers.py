"""Adam for stacked weights whose runs have learning rates of their own."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch


def make_adam(
    parameters: Mapping[str, torch.Tensor], rates: Sequence[float], betas: tuple[float, float]
) -> torch.optim.Adam:
    """Make an Adam over views of stacked weights: one group for each stretch of runs of equal rates.

    Args:
        parameters: Weights by name, with ``R`` in front.
        rates: Each run's learning rate.
        betas: Adam's decay rates.

    Returns:
        The optimiser; on a GPU its steps can be captured in a CUDA graph.
    """
    groups: list[dict[str, Any]] = []
    start = 0
    for rate, stretch in groupby(rates):
        stop = start + len(list(stretch))
        views = [value.detach()[start:stop] for value in parameters.values()]
        groups.append({"params": views, "lr": rate, "runs": (start, stop)})
        start = stop
    return torch.optim.Adam(groups, betas=betas, fused=True, capturable=groups[0]["params"][0].is_cuda)


def apply(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]
) -> None:
    """Do one step.

    Args:
        optimizer: As from :func:`make_adam`.
        parameters: The weights that it was made for.
        gradients: Their gradients, by the same names.
    """
    for group in optimizer.param_groups:
        start, stop = group["runs"]
        targets, sources = [], []
        for name, view in zip(parameters, group["params"], strict=True):
            gradient = gradients[name][start:stop]
            # The fused kernel wants data type and strides of the weights, those of dimensions of size 1 included.
            if gradient.dtype != view.dtype or gradient.stride() != view.stride():
                sources.append(gradient.contiguous())
                gradient = torch.empty_like(view)
                targets.append(gradient)
            view.grad = gradient
        if targets:
            torch._foreach_copy_(targets, sources)
    optimizer.step()

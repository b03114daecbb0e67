"""Soft search among exemplars: weights by energy, and the mean that these make."""

from typing import NamedTuple

import torch

from .base import HIDDEN

SEARCH_BYTES = 2**22
"""Memory of one part of a search, exemplars and distances in single precision: what a processor's cache holds."""
GPU_SEARCH_BYTES = 2**29
"""The same on a GPU, which is slower in small parts: all cells of 64 images at 256x256 in one."""


class Found(NamedTuple):
    """What a search among some exemplars found for ``c`` cells of ``B`` images.

    Attributes:
        departure: Whitened latent less the weighted mean of the exemplars, of shape ``(c, B, d)``.
        log_weight: Logarithm of the sum of the weights ``exp(-e_n / T)``, of shape ``(c, B)``.
        nearest: Energy to the nearest exemplar, of shape ``(c, B)``, at least 0.
    """

    departure: torch.Tensor
    log_weight: torch.Tensor
    nearest: torch.Tensor


def attend(
    query: torch.Tensor,
    bank: torch.Tensor,
    half_norm: torch.Tensor,
    step: torch.Tensor,
    temperature: torch.Tensor,
    hidden: torch.Tensor | None,
    log_prior: torch.Tensor | None = None,
) -> Found:
    """Attend to exemplars: weigh them for queries, less those that are hidden.

    Args:
        query: Whitened latents, of shape ``(c, B, d)``.
        bank: Exemplars in steps, of shape ``(c, d, K)``.
        half_norm: Half the squared length of each exemplar, of shape ``(c, 1, K)`` or ``(K,)``.
        step: Length of a step of each latent, of shape ``(d,)``.
        temperature: Temperature ``T`` of the weights, of shape ``()``.
        hidden: Whether each exemplar is hidden from each query, of shape ``(c, B, K)``, or ``None``.
        log_prior: Logarithm of the exemplars' prior at each cell, of shape ``(cells, 1, K)``, or ``None``.

    Returns:
        What was found.
    """
    logit = torch.baddbmm(half_norm * (-2 / temperature), query * (step * (2 / temperature)), bank)
    if hidden is not None:
        logit = logit - HIDDEN * hidden
    nearest = logit.amax(2)
    if log_prior is not None:
        # The same for every image of a batch, whose size an export leaves open.
        logit = (logit.reshape(len(log_prior), -1, log_prior.shape[2]) + log_prior).reshape(logit.shape)
    weight, norm = logit.softmax(2), query.square().sum(2)
    # The greatest weight is exp(greatest) over the sum.
    log_sum = logit.amax(2) - weight.amax(2).log()
    return Found(
        departure=query - torch.bmm(weight, bank.mT) * step,
        log_weight=log_sum - norm / temperature,
        nearest=(norm - temperature * nearest).clamp_min(0),
    )


def parts(cells: int, floats: int, device: torch.device) -> list[slice]:
    """Divide cells, each of which takes so many floats, into parts that suit a device; an export has one part."""
    limit = SEARCH_BYTES if device.type == "cpu" else GPU_SEARCH_BYTES
    part = cells if torch.compiler.is_compiling() else max(1, limit // (4 * floats))
    return [slice(start, start + part) for start in range(0, cells, part)]


def joined(found: list[Found]) -> Found:
    """Put what was found for parts of the cells together."""
    return Found(*(torch.cat(parts) for parts in zip(*found, strict=True)))

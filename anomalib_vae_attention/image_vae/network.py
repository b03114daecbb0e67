"""Networks of layers with adjoints: every activation has a name, and gradients go back to any of them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from .adjoints import adjoint

INPUT = "input"
"""Name of what a network is given, where gradients can go back to as well."""

Trace = dict[str, torch.Tensor]
"""Activations by name, each of shape ``(B, ...)``."""


class Step(NamedTuple):
    """A layer in a network.

    Attributes:
        name: Its name, and that of its output.
        layer: The layer, in evaluation mode a function of its inputs alone.
        inputs: Names of what it is given.
    """

    name: str
    layer: nn.Module
    inputs: tuple[str, ...]


def chain(steps: Iterable[tuple[str, nn.Module]], start: str = INPUT) -> list[Step]:
    """Make steps of named layers, each given the output of the one before."""
    made: list[Step] = []
    for name, layer in steps:
        made.append(Step(name, layer, (made[-1].name if made else start,)))
    return made


class Network(nn.Module):
    """A network as a list of steps. A subclass makes the layers, as its attributes, and then sets ``steps``.

    Attributes:
        steps: The layers in the order of computation.
        map_layers: Names of the layers that attention can look at: those whose output is a map, ``(B, C, h, w)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.map_layers: list[str] = []

    def find(self, name: str) -> str:
        """Return a layer's own name, given that or the module which it ends: ``layer2`` for ``layer2.1.relu2``.

        Raises:
            ValueError: If there is no such layer; the message lists the layers.
        """
        found = [layer for layer in self.map_layers if layer == name or layer.startswith(f"{name}.")]
        if not found:
            msg = f"attention_layers: {name!r} is no layer of the encoder, which has {self.map_layers}."
            raise ValueError(msg)
        return name if name in found else found[-1]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the output of the last layer."""
        return self.trace(image, kept=())[self.steps[-1].name]

    def trace(self, image: torch.Tensor, kept: Sequence[str] | None = None) -> Trace:
        """Return the activations of what the network is given, of shape ``(B, ...)``, by name.

        All by default, or the last and those ``kept``: what gradients are to go back to, and everything after it.
        """
        last_use = {name: index for index, step in enumerate(self.steps) for name in step.inputs}
        trace = {INPUT: image}
        for index, (name, layer, inputs) in enumerate(self.steps):
            trace[name] = layer(*(trace[source] for source in inputs))
            if kept is not None:
                for source in inputs:
                    if source not in kept and last_use[source] == index:
                        del trace[source]
        return trace

    @torch.no_grad()
    def map_shapes(self, image_shape: Sequence[int], layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shape ``(C, h, w)`` of what each of some layers makes of an image of shape ``(C, H, W)``."""
        was_training, device = self.training, next(self.parameters()).device
        trace = self.eval().trace(torch.zeros(1, *image_shape, device=device), layers)
        self.train(was_training)
        return {name: tuple(trace[name].shape[1:]) for name in layers}

    def from_layer(self, first: str) -> list[str]:
        """Return the names of the first layer and everything after it, :data:`INPUT` being before all layers."""
        names = [INPUT, *(step.name for step in self.steps)]
        return names[names.index(first) :]

    def adjoint(self, gradient: torch.Tensor, trace: Trace, wanted: Sequence[str]) -> Trace:
        """Carry gradients by the output back to activations, in evaluation mode.

        Args:
            gradient: Gradients of ``P`` scores per image by the output, of shape ``(B, P, ...)``.
            trace: Activations, as from :meth:`trace`.
            wanted: Names of the activations, :data:`INPUT` among them perhaps.

        Returns:
            Gradients by each of them, of shape ``(B, P, ...)``, of what goes through it, not past it.
        """
        needed = self.from_layer(min(wanted, key=[INPUT, *(step.name for step in self.steps)].index))
        gradients = {self.steps[-1].name: gradient}
        for step in reversed(self.steps):
            # The trace has nothing from before the first activation wanted.
            if step.name not in gradients or not set(step.inputs) & set(needed):
                continue
            by_output = gradients[step.name] if step.name in wanted else gradients.pop(step.name)
            sources = tuple(trace[source] for source in step.inputs if source in needed)
            by_inputs = adjoint(step.layer, by_output, sources, trace[step.name])
            for source, part in zip(step.inputs, by_inputs, strict=True):
                if source in needed:
                    gradients[source] = gradients[source] + part if source in gradients else part
        return {name: gradients[name] for name in wanted}

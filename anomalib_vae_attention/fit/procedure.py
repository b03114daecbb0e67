"""What every way of fitting is: hooks that the anomalib model calls, most of them empty until overridden."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.utilities.types import STEP_OUTPUT


class FitProcedure:
    """How a model learns from normal images.

    Every hook is given the anomalib model that is fitted, with its trainer, device and components. A new way of
    fitting overrides :meth:`step` and the hooks that it needs.
    """

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of the trainer that this way of fitting asks for."""
        return {}

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer | None:
        """Return the optimiser of a torch model's weights, or none."""

    def setup(self, module: AnomalibModule, stage: str) -> None:
        """Get ready for a run of the trainer, before it distributes the module; see Lightning's hook."""

    def start(self, module: AnomalibModule) -> None:
        """Get ready to fit."""

    def step(self, module: AnomalibModule, batch: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Learn from a batch of normal images, and return a loss."""
        raise NotImplementedError

    def end_step(self, module: AnomalibModule) -> None:
        """Finish a step, of which the last of an epoch comes before validation."""

    def save(self, module: AnomalibModule, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint what it takes to go on; all processes call it."""

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint."""


def read_again(module: AnomalibModule, loader: Iterable[Any]) -> Iterator[Any]:
    """Read training images outside the trainer's loop, through the model's pre-processor.

    Yields:
        Batches on the model's device, as a training step gets them.
    """
    for index, loaded in enumerate(loader):
        batch = module.transfer_batch_to_device(loaded, module.device, 0)
        if isinstance(module.pre_processor, PreProcessor):
            module.pre_processor.on_train_batch_start(module.trainer, module, batch, index)
        yield batch

"""Several processes: what each has learnt from its share of the images, put together exactly."""

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from torch import distributed, nn
from torch.utils.data import DistributedSampler

logger = logging.getLogger(__name__)

T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes, 1 where torch's process group is not in use."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0 where torch's process group is not in use."""
    return distributed.get_rank() if world_size() > 1 else 0


def gather(part: T) -> list[T]:
    """Return every process's part, in the order of their ranks; all processes must call it.

    A part is what can be pickled, tensors on the CPU. If another process has died, torch raises a ``RuntimeError``.
    """
    if world_size() == 1:
        return [part]
    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, part)
    return parts


def interleave(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Exchange batches of shape ``(B, ...)``, so that each process sees all, in the order of the data set's sampling.

    ``DistributedSampler`` deals images out like cards; a process may have fewer batches than another, or none.

    Yields:
        The images of one batch of every process, on the device of this process's batch.
    """
    if world_size() == 1:
        yield from batches
        return
    own = iter(batches)
    while True:
        batch = next(own, None)
        parts = gather(None if batch is None else batch.cpu())
        present = [part for part in parts if part is not None]
        if not present:
            return
        dealt = itertools.chain.from_iterable(itertools.zip_longest(*present))
        together = torch.stack([image for image in dealt if image is not None])
        yield together if batch is None else together.to(batch.device)


class OwnImages:
    """Says which images of a process are its own, given their loader at the beginning of an epoch.

    ``DistributedSampler`` repeats images until every process has as many; the repeated ones, which come last, must not
    be counted twice.
    """

    def __init__(self, loader: object) -> None:
        self._left: float = float("inf")
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            images = range(sampler.rank, len(sampler.dataset), sampler.num_replicas)  # type: ignore[arg-type]
            self._left = len(images)
        elif world_size() > 1:
            logger.warning(
                "The images are not dealt out by a DistributedSampler (use_distributed_sampler=False?): images that "
                "several processes read are counted several times.",
            )

    def among(self, batch_size: int) -> int:
        """Return how many images of the next batch are its own: the first ones."""
        own = int(min(batch_size, self._left))
        self._left -= own
        return own


def share(module: nn.Module) -> None:
    """Give a module in every process the parameters and buffers that it has in the first."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, src=0)


def agree_on_folder(trainer: Trainer) -> None:
    """Let all processes write into the first one's folder; the others' trainers get it for theirs.

    anomalib makes a folder per run, in every process. The others' are removed, if they are empty.
    """
    if world_size() == 1:
        return
    own = Path(trainer.default_root_dir)
    folder = Path(gather(str(own))[0])
    if own != folder:
        # Lightning has no setter.
        vars(trainer)["_default_root_dir"] = str(folder)
        with contextlib.suppress(OSError):
            own.rmdir()
    distributed.barrier()


class Anchor(nn.Module):
    """A parameter without use, in no checkpoint: ``DistributedDataParallel`` takes no model that has none to train."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self) -> torch.Tensor:
        """Return a loss of 0 that depends on the parameter."""
        return 0 * self.value

    def _save_to_state_dict(self, *_args: object) -> None:
        """Save nothing."""

    def _load_from_state_dict(self, *_args: object) -> None:
        """Load nothing."""

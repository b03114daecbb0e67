"""Training all runs of a campaign side by side on one GPU, with scores, checkpoints and a limit of time."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from anomalib_vae_attention.common.atomic_files import read_json, write_json
from anomalib_vae_attention.dsprites.callbacks import (
    SCORES_FILE,
    TEST_FILE,
    WholeCheckpoints,
    add_scores,
    describe,
)
from anomalib_vae_attention.dsprites.models import BetaVAE

from .arms import Schedule
from .evaluation import encode_means, loss_on_test_batches
from .runs import STEPS, StackedRuns
from .scores import Scorer
from .structure import fit_together, structure

if TYPE_CHECKING:
    from concurrent.futures import Future

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "stacked.ckpt"
WEIGHTS_FILE = "weights.ckpt"


def finished_steps(run: Path) -> int:
    """Return after how many steps a run was tested, given its folder; 0 if it was not."""
    tested = read_json(run / TEST_FILE)
    return int(tested["step"]) if tested else 0


class Run(NamedTuple):
    """One run of a campaign.

    Attributes:
        folder: Where its scores and weights go; its name is that of the run.
        seed: Seed of its batches, noise and permutations.
        model: The model, with the weights to start from.
    """

    folder: Path
    seed: int
    model: BetaVAE


class StackedCampaign:
    """Runs of any structures, those of one structure stacked, all of them advanced together.

    Args:
        runs: The runs, in any order.
        bits: All images at one bit per pixel, shape ``(N, 512)``, on the device to train on.
        output: Folder of the checkpoint.
        scorer: What computes the scores.
        batch_size: Images in a batch.
        working: Data type of the VAE's large products.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        bits: torch.Tensor,
        output: Path,
        scorer: Scorer,
        batch_size: int = 64,
        working: torch.dtype = torch.bfloat16,
    ) -> None:
        self.members: list[list[Run]] = []
        # Those without attention last, to join others; equal learning rates side by side, for one launch of Adam.
        for run in sorted(runs, key=lambda run: structure(run.model).attention is None):
            others = (members for members in self.members if fit_together([run.model, *(o.model for o in members)]))
            members = next(others, None)
            if members is None:
                self.members.append([run])
            else:
                members.append(run)
        for members in self.members:
            members.sort(key=lambda run: run.model.learning_rate)
        self.stacks = [
            StackedRuns([run.model for run in members], [run.seed for run in members], bits, batch_size, working)
            for members in self.members
        ]
        self.bits, self.scorer = bits, scorer
        self.checkpoint = output / CHECKPOINT_FILE
        self.rows: list[tuple[Run, dict[str, Any], Future[dict[str, float]]]] = []

    @property
    def steps(self) -> int:
        """Number of steps that every run has done."""
        return self.stacks[0].steps

    def fit(self, schedule: Schedule, is_late: Callable[[], bool] = lambda: False) -> None:
        """Train until the runs are done or it is late; score and save at either, and in between.

        Args:
            schedule: When to do what.
            is_late: Says whether to stop now.

        Raises:
            ValueError: If a number of steps is no multiple of 20, or 0 where it must not be.
        """
        if any(steps % STEPS or steps < 0 for steps in schedule) or not schedule.score_every:
            msg = f"steps must be multiples of {STEPS}, and only save_every may be 0, but are {schedule}"
            raise ValueError(msg)
        started, before = time.monotonic(), self.steps
        if before >= schedule.steps:
            return
        pending: list[torch.cuda.Event] = []
        while self.steps < schedule.steps and not is_late():
            for stack in self.stacks:
                stack.advance()
                if stack.stream is not None:
                    pending.append(stack.stream.record_event())
            # Not further ahead of the GPU than one round, so that the limit of time holds.
            while len(pending) > len(self.stacks):
                pending.pop(0).synchronize()
            if self.steps % schedule.score_every == 0:
                self.score()
                rate = (self.steps - before) * sum(map(len, self.members)) / (time.monotonic() - started)
                print(f"{self.steps} steps, {rate:.0f} run-steps per second", flush=True)
            if schedule.save_every and self.steps % schedule.save_every == 0:
                self.save()
        if self.steps % schedule.score_every:
            self.score()
        if schedule.save_every and self.steps % schedule.save_every:
            self.save()
        self.write(wait=True)

    def score(self) -> None:
        """Encode the test images now, and have the scores computed beside the training that goes on."""
        for stack, members in zip(self.stacks, self.members, strict=True):
            with stack.on_stream():
                codes = encode_means(stack, self.scorer.indices)
                terms = loss_on_test_batches(stack)
            for index, run in enumerate(members):
                row = {"step": self.steps, **{name: values[index] for name, values in terms.items()}}
                if not np.isfinite(row["reconstruction"]):
                    logger.warning("%s: the loss is not finite at step %d", run.folder.name, self.steps)
                self.rows.append((run, row, self.scorer.submit(codes[index])))
        self.write(wait=False)

    def write(self, *, wait: bool) -> None:
        """Write the rows whose scores are there, in order; or all, after waiting for them."""
        while self.rows and (wait or self.rows[0][2].done()):
            run, terms, scores = self.rows.pop(0)
            row = {**terms, **scores.result()}
            add_scores(run.folder / SCORES_FILE, row)
            write_json(run.folder / TEST_FILE, {"model": describe(run.model), **row})

    def save(self) -> None:
        """Write one checkpoint of all runs, whole or not at all, and the weights of each VAE by itself."""
        # What goes on from it does not score again what came before.
        self.write(wait=True)
        states = [stack.state_dict() for stack in self.stacks]
        WholeCheckpoints().save_checkpoint({"runs": self._names(), "stacks": states}, self.checkpoint)
        self.save_weights()

    def save_weights(self) -> None:
        """Write the weights of encoder and decoder, as ``traverse`` reads them, to a file in each run's folder."""
        for stack, members in zip(self.stacks, self.members, strict=True):
            for index, run in enumerate(members):
                content = {"state_dict": stack.weights_of(index), "global_step": stack.steps}
                WholeCheckpoints().save_checkpoint(content, run.folder / WEIGHTS_FILE)

    def resume(self, steps: int | None = None) -> bool:
        """Go on where the checkpoint was written.

        Args:
            steps: After how many steps runs are done; a checkpoint of others that are done is none.

        Returns:
            Whether there was one.

        Raises:
            ValueError: If it is of other runs, or these had other settings.
        """
        if not self.checkpoint.is_file():
            return False
        kept = torch.load(self.checkpoint, map_location=self.bits.device, weights_only=True)
        if kept["runs"] != self._names():
            others = [self.checkpoint.parent / name for names in kept["runs"] for name in names]
            if steps is not None and all(finished_steps(folder) >= steps for folder in others):
                return False
            msg = f"{self.checkpoint} holds the runs {kept['runs']}, not {self._names()}: name another output folder"
            raise ValueError(msg)
        for stack, state in zip(self.stacks, kept["stacks"], strict=True):
            stack.load_state_dict(state)
        return True

    def _names(self) -> list[list[str]]:
        return [[run.folder.name for run in members] for members in self.members]

"""dSprites for Lightning: batches at random, the same after a resumed run as in an uninterrupted one."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from anomalib_vae_attention.common.argument_checks import require_whole

from .dataset import DSprites
from .store import IMAGES

TEST_SEED = 2**31 - 1
"""Seed of the test batches: another than anybody's training seed."""


class RandomBatches(Sampler[torch.Tensor]):
    """Indices of batches drawn with replacement: a function of the seed and of how many were drawn before.

    Nothing the size of the data set is made, and a resumed run needs but one number to go on. An epoch has ``batches``
    batches of ``batch_size`` images; the attribute ``drawn`` is how many batches were drawn before.
    """

    def __init__(self, batch_size: int, batches: int, seed: int) -> None:
        self.batch_size, self.batches, self.seed, self.drawn = batch_size, batches, seed, 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Draw the indices of each batch of the next epoch, shape ``(B,)``."""
        for _ in range(self.batches):
            # NumPy's seeding keeps the streams of neighbouring seeds apart; PyTorch's uses 32 bits only.
            indices = np.random.default_rng((self.seed, self.drawn)).integers(IMAGES, size=self.batch_size)
            self.drawn += 1
            yield torch.from_numpy(indices)


class DSpritesDataModule(pl.LightningDataModule):
    """dSprites as batches drawn at random with replacement; an epoch is a number of batches, not a pass.

    Args:
        root: Folder to keep the images in; they are drawn on first use.
        npz: The published file, to be used instead of drawing.
        batch_size: Images in a batch, at least 2: FactorVAE permutes latents over the batch.
        batches_per_epoch: Batches in an epoch, at least 1. Checkpoints are written between epochs.
        test_batches: Batches, at least 1, on which reconstruction and KL are tested.
        seed: Seed of the batches, not negative.

    Raises:
        ValueError: If a number is less than the least that its argument may be.
    """

    def __init__(
        self,
        root: Path | str = "./datasets/dSprites",
        npz: Path | str | None = None,
        batch_size: int = 64,
        batches_per_epoch: int = 1000,
        test_batches: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_whole("batch_size", batch_size, least=2)
        require_whole("batches_per_epoch", batches_per_epoch, least=1)
        require_whole("test_batches", test_batches, least=1)
        require_whole("seed", seed, least=0)
        self.root, self.npz = root, npz
        self.batch_size, self.test_batches = batch_size, test_batches
        self.batches = RandomBatches(batch_size, batches_per_epoch, seed)

    def prepare_data(self) -> None:
        """Draw or convert the images unless they are there; the errors are those of :class:`DSprites`."""
        DSprites(self.root, self.npz)

    @cached_property
    def data(self) -> DSprites:
        """The data set, opened on first use."""
        return DSprites(self.root, self.npz)

    def _loader(self, sampler: RandomBatches) -> DataLoader:
        """Make a loader in this process: unpacking a batch costs less than sending it from another."""
        # Its own generator, because a loader would otherwise draw a seed for its workers from the global one.
        return DataLoader(self.data, batch_size=None, sampler=sampler, generator=torch.Generator())

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training batches, which goes on after those already drawn."""
        return self._loader(self.batches)

    def test_dataloader(self) -> DataLoader:
        """Return the loader of test batches, the same for every seed, so that runs can be compared."""
        return self._loader(RandomBatches(self.batch_size, self.test_batches, TEST_SEED))

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint keeps: how many training batches were drawn."""
        return {"drawn": self.batches.drawn}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the batches that a checkpoint's run had drawn."""
        self.batches.drawn = state_dict["drawn"]

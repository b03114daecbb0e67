"""Scores of several runs, computed by worker processes from codes that the GPU has made beforehand.

The metrics ask an encoder for images one small batch after the other. They draw by seed, so which images they will ask
for is known beforehand: these are encoded at once, and the metrics look the codes up.
"""

import os
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray

from anomalib_vae_attention.dsprites.dataset import index_of, sample_factors
from anomalib_vae_attention.dsprites.drawing import FACTOR_SIZES, FACTORS
from anomalib_vae_attention.dsprites.metrics import all_metrics


class CodeTable:
    """A data set whose images are their indices, with the encoder that looks up their codes.

    Args:
        indices: Which images have a code, in ascending order, shape ``(N,)``.
        codes: Their codes, shape ``(N, d)``.
    """

    factors, factor_sizes = FACTORS, FACTOR_SIZES

    def __init__(self, indices: NDArray[np.int64], codes: NDArray[np.float32]) -> None:
        self.indices, self.codes = indices, codes
        self.asked: list[NDArray[np.int64]] = []

    def sample_factors(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw factor indices, shape ``(count, 5)``."""
        return sample_factors(FACTOR_SIZES, count, generator)

    def images_of(self, factors: torch.Tensor) -> torch.Tensor:
        """Return the indices of images with given factors ``(B, 5)``, shape ``(B,)``."""
        return index_of(factors)

    def encode(self, indices: torch.Tensor) -> torch.Tensor:
        """Look up codes, shape ``(B, d)``; without a table, remember what was asked for."""
        if not len(self.indices):
            self.asked.append(indices.numpy())
            return torch.stack([indices % 7, indices % 11, indices % 13], 1).to(torch.float32)
        return torch.from_numpy(self.codes[np.searchsorted(self.indices, indices.numpy())])


def needed_indices(seed: int = 0) -> NDArray[np.int64]:
    """Find which images the metrics will ask for, in ascending order, shape ``(N,)``."""
    table = CodeTable(np.empty(0, np.int64), np.empty((0, 0), np.float32))
    all_metrics(table, table.encode, seed, boosting=False)
    return np.unique(np.concatenate(table.asked))


def score(indices: NDArray[np.int64], codes: NDArray[np.float32], seed: int = 0) -> dict[str, float]:
    """Compute all metrics but DCI by boosted trees.

    Args:
        indices: As from :func:`needed_indices`.
        codes: Their codes, shape ``(N, d)``.
        seed: Seed of all draws.

    Returns:
        Scores by name; none if a code is not finite.
    """
    if not np.isfinite(codes).all():
        return {}
    table = CodeTable(indices, codes)
    return all_metrics(table, table.encode, seed, boosting=False)


class Scorer:
    """Worker processes that compute scores while training goes on.

    Args:
        workers: How many; with 0, scores are computed at once.
    """

    def __init__(self, workers: int) -> None:
        self.pool = None
        if workers:
            # Read by the workers' libraries as they are loaded: many small jobs are faster on a thread each.
            os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
            self.pool = ProcessPoolExecutor(workers, get_context("spawn"))
        self.indices = needed_indices()

    def submit(self, codes: NDArray[np.float32]) -> "Future[dict[str, float]]":
        """Compute the scores of codes ``(N, d)`` of the needed images, some time."""
        if self.pool is not None:
            return self.pool.submit(score, self.indices, codes)
        done: Future[dict[str, float]] = Future()
        done.set_result(score(self.indices, codes))
        return done

    def close(self) -> None:
        """End the workers."""
        if self.pool is not None:
            self.pool.shutdown()

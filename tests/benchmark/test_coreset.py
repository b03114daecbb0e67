"""The fast coreset beside anomalib's."""

import pytest
import torch
from anomalib.models.components import KCenterGreedy
from lightning import seed_everything

from anomalib_vae_attention.benchmark.coreset import FastKCenterGreedy, fit_gib


def test_the_same_coreset_as_anomalib() -> None:
    """From the same random projection and first centre, the same features are chosen in the same order."""
    features = torch.randn(3000, 40) * torch.rand(3000, 1)
    chosen = []
    for kind in (KCenterGreedy, FastKCenterGreedy):
        seed_everything(3)
        chosen.append(kind(embedding=features, sampling_ratio=0.05).select_coreset_idxs())
    assert len(chosen[0]) == 150
    assert chosen[0] == chosen[1]


def test_memory_of_a_fit_is_what_was_measured() -> None:
    """A fit of 761 images, 32x32 cells of 152 channels, took 3092 MiB (docs/benchmark.md)."""
    assert 1024 * fit_gib(761 * 32 * 32, 152, fast=True) == pytest.approx(3092, rel=0.1)
    assert fit_gib(1000, 10, fast=False) > fit_gib(1000, 10, fast=True) > 4 * 1000 * 2 * 10 / 2**30

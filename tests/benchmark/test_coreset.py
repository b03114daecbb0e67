"""The fast coreset beside anomalib's."""

import torch
from anomalib.models.components import KCenterGreedy
from lightning import seed_everything

from anomalib_vae_attention.benchmark.coreset import FastKCenterGreedy


def test_the_same_coreset_as_anomalib() -> None:
    """From the same random projection and first centre, the same features are chosen in the same order."""
    features = torch.randn(3000, 40) * torch.rand(3000, 1)
    chosen = []
    for kind in (KCenterGreedy, FastKCenterGreedy):
        seed_everything(3)
        chosen.append(kind(embedding=features, sampling_ratio=0.05).select_coreset_idxs())
    assert len(chosen[0]) == 150
    assert chosen[0] == chosen[1]

"""The fit on features: when it weighs the layers anew."""

from collections.abc import Iterator

import pytest
import torch

from anomalib_vae_attention.fit.closed_form import fit_model
from anomalib_vae_attention.fit.feature_statistics import FeatureMoments
from anomalib_vae_attention.torch_model import VaeAttentionModel


@pytest.mark.parametrize(("spread", "readings"), [(0.0, 2), (1.0, 1)])
def test_a_homogeneous_texture_is_fitted_twice(spread: float, readings: int) -> None:
    """Noise of one size is read again with other weights of layers; where its size varies from cell to cell, not."""
    model = VaeAttentionModel(pre_trained=False, latent_dim=8)
    model.layers(torch.zeros(1, 3, 64, 64))
    count = sum(model.grid.channels)
    features = torch.randn(12, count, 8, 8) @ torch.randn(8, 8) * (spread * torch.randn(12, 1, 8, 8)).exp()
    moments = FeatureMoments()
    moments.update(features)
    read = []

    def read_features() -> Iterator[torch.Tensor]:
        read.append(features)
        return iter(features.split(5))

    covariance = fit_model(model, moments.compute(), read_features)
    assert len(read) == readings
    assert model.is_fitted
    variance = [float(part[0]) for part in covariance.diagonal().split(model.grid.channels)]
    # blocks.4 has a quarter of the grid's cells: beside blocks.2, it counts by channels alone, or less.
    by_channels = (model.grid.channels[1] / model.grid.channels[2]) ** 0.5
    assert (variance[5] / variance[4] == pytest.approx(by_channels)) == (readings == 1)
    assert variance[5] / variance[4] <= by_channels + 1e-6

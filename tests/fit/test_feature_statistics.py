"""The feature cache, and the moments against NumPy."""

import numpy as np
import pytest
import torch

from anomalib_vae_attention.fit.feature_statistics import FeatureCache, FeatureMoments


def test_cache_forgets_what_is_too_much() -> None:
    """Beyond its limit the cache holds nothing at all, and stays so."""
    cache = FeatureCache("auto")
    cache.limit = 3 * 4 * 10
    for size, complete, held in ((10, True, 1), (10, True, 2), (20, False, 0), (1, False, 0)):
        cache.append(torch.zeros(size))
        assert cache.complete is complete
        assert len(list(cache)) == held


def test_moments_are_numpys() -> None:
    """Mean and covariance from batches are numpy's over all cells, also of features far from 0."""
    features = torch.randn(7, 5, 4, 3, dtype=torch.float64) + 1e4
    moments = FeatureMoments()
    for batch in features.split(3):
        moments.update(batch)
    mean, covariance, _ = moments.compute()
    rows = features.transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(mean.numpy(), rows.mean(1), rtol=1e-12)
    np.testing.assert_allclose(covariance.numpy(), np.cov(rows, bias=True), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="training set is empty"):
        FeatureMoments().compute()


def test_place_share_is_that_of_an_analysis_of_variance() -> None:
    """The share is what NumPy finds; a texture has none, a part that never moves all, and the border does not count."""
    layout, noise = torch.randn(1, 4, 8, 9), torch.randn(50, 4, 8, 9)
    layout *= torch.tensor([0.5, 1.0, 2.0, 4.0])[:, None, None]

    def share_of(features: torch.Tensor) -> torch.Tensor:
        moments = FeatureMoments()
        for part in features.split(7):
            moments.update(part)
        return moments.compute().place_share

    inside = (layout + noise)[:, :, 2:-2, 2:-2].double().numpy()
    within, whole = inside.var(0, ddof=1).mean((1, 2)), inside.var((0, 2, 3))
    np.testing.assert_allclose(share_of(layout + noise).numpy(), (1 - within / whole).clip(0), rtol=1e-6, atol=1e-9)
    assert (share_of(noise) < 0.05).all()
    np.testing.assert_allclose(share_of(layout.expand(50, -1, -1, -1)).numpy(), 1)
    edge = noise.clone()
    edge[:, :, 0] += 100
    assert (share_of(edge) < 0.05).all()
    assert (share_of(layout) == 0).all()
    assert (share_of(torch.ones(5, 4, 8, 9)) <= 1).all(), "constant channels are finite"

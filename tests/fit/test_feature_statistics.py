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
    mean, covariance = moments.compute()
    rows = features.transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(mean.numpy(), rows.mean(1), rtol=1e-12)
    np.testing.assert_allclose(covariance.numpy(), np.cov(rows, bias=True), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="training set is empty"):
        FeatureMoments().compute()

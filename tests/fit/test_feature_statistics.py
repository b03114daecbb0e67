"""The feature cache, the moments and the refinement against NumPy and a random start."""

import numpy as np
import pytest
import torch

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.fit.feature_statistics import FeatureCache, FeatureMoments, refine
from anomalib_vae_attention.vae import FeatureVAE


def test_cache_forgets_what_is_too_much() -> None:
    """Beyond its limit the cache holds nothing at all, and stays so; a mode it does not have is an error."""
    cache = FeatureCache("auto")
    cache.limit = 3 * 4 * 10
    for size, complete, held in ((10, True, 1), (10, True, 2), (20, False, 0), (1, False, 0)):
        cache.append(torch.zeros(size))
        assert cache.complete is complete
        assert len(list(cache)) == held
    with pytest.raises(ValueError, match=r"cache_features must be .*'sometimes'"):
        VaeAttention(cache_features="sometimes", pre_trained=False)


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


@pytest.mark.parametrize("start", ["ppca", "random"])
@pytest.mark.parametrize("learning_rate", [1e-4, 1e-2, 10.0])
def test_refinement_is_never_worse(learning_rate: float, start: str) -> None:
    """The state kept is at least as good as the start, whatever the step size, and it is the state of the VAE."""
    factor = torch.randn(10, 10, dtype=torch.float64)
    covariance = factor @ factor.T / 10
    vae = FeatureVAE([10], 3)
    if start == "ppca":
        vae.initialise(covariance)
    history = refine(vae, covariance, 20, learning_rate)
    assert len(history) == 22
    assert history[-1]["loss"] <= history[0]["loss"]
    assert history[-1]["loss"] == min(terms["loss"] for terms in history)
    with torch.no_grad():
        kept = vae.elbo_terms(torch.zeros(10, dtype=torch.float64), covariance)
    assert float(kept["loss"]) == pytest.approx(history[-1]["loss"], rel=1e-6)
    assert history[-1]["loss"] == pytest.approx(history[-1]["reconstruction"] + history[-1]["kl"])
    if start == "random" and learning_rate == pytest.approx(1e-2):
        assert history[-1]["loss"] < history[0]["loss"] - 0.1

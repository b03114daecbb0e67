"""The metric of departures against scikit-learn's covariance, and what it asks of normal images."""

import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from support import collect

from anomalib_vae_attention.reference import Exemplars, exemplars
from anomalib_vae_attention.reference.departure_metric import (
    PLAIN_AT,
    departure_metric,
    homogeneity,
    metric_power,
    moments,
)
from anomalib_vae_attention.vae import Posterior

LATENTS = 6
SPREAD = torch.tensor([4.0, 3.0, 2.0, 1.5, 1.0, 0.7])


def draw(uneven: float = 0.0) -> torch.Tensor:
    """Draw departures ``(20, 100, d)`` of one covariance, whose size varies from cell to cell where they are uneven."""
    rotation, _ = torch.linalg.qr(torch.randn(LATENTS, LATENTS))
    size = (uneven * torch.randn(20, 100, 1)).exp()
    return size * torch.randn(20, 100, LATENTS) * SPREAD @ rotation


def test_departures_of_one_gaussian_have_mahalanobis_energies() -> None:
    """Where one Gaussian explains all, the energy is scikit-learn's Mahalanobis distance but for a factor."""
    departure = draw()
    covariance, square = moments(departure.split(3))
    assert homogeneity(covariance, square) > 0.9
    assert metric_power(covariance, square) == pytest.approx(1, abs=0.1)
    metric = departure_metric(covariance, 1.0)
    rows = departure.flatten(0, 1).double()
    torch.testing.assert_close(covariance, rows.T @ rows / len(rows))
    energy = (rows @ metric * rows).sum(1)
    oracle = EmpiricalCovariance(assume_centered=True).fit(rows.numpy()).mahalanobis(rows.numpy())
    ratio = energy / torch.from_numpy(oracle)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-5, atol=0)
    assert float(energy.mean()) == pytest.approx(float(square.mean()), rel=1e-5)


def test_uneven_departures_count_more_where_normal_images_vary() -> None:
    """Where sizes vary from cell to cell, directions of large variance count more; the mean energy is kept."""
    departure = draw(uneven=1.0)
    covariance, square = moments([departure])
    assert homogeneity(covariance, square) < PLAIN_AT
    metric = departure_metric(covariance, metric_power(covariance, square))
    values, vectors = torch.linalg.eigh(covariance)
    weights = (vectors.T @ metric @ vectors).diagonal()
    assert (weights.diff() > 0).all(), "eigenvalues are in ascending order"
    assert 1 < float(weights[-1] / weights[0]) < float(values[-1] / values[0])
    rows = departure.flatten(0, 1).double()
    assert float((rows @ metric * rows).sum(1).mean()) == pytest.approx(float(square.mean()), rel=1e-5)


def test_homogeneity_of_gaussians() -> None:
    """It is 1 for departures of one Gaussian, whatever its spread, and falls with the variation of their size."""
    values = [homogeneity(*moments([draw(uneven)])) for uneven in (0.0, 0.2, 0.5, 1.0)]
    assert values[0] == pytest.approx(1, abs=0.1)
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("departure", [torch.randn(2, 20, LATENTS), torch.zeros(20, 100, LATENTS)])
def test_too_little_to_go_by(departure: torch.Tensor) -> None:
    """Few departures, or none of any length, leave the energy as it is."""
    assert metric_power(*moments([departure])) == 0
    assert torch.equal(departure_metric(torch.rand(3, 3), 0.0), torch.eye(3))


def test_energies_of_the_exemplars_are_in_their_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fitted reference has a metric; its energies are in it, and those of left-out images, whose mean it keeps."""
    spread, variance = SPREAD[:, None, None], torch.full((LATENTS,), 0.5)
    latents, query = spread * torch.randn(24, LATENTS, 4, 5), spread * torch.randn(3, LATENTS, 4, 5)
    normal, plain = Exemplars(), Exemplars()
    monkeypatch.setattr(exemplars, "LEVEL_POWER", 0.0)
    left_out = collect(normal, latents, variance).energy
    match = normal.match(Posterior(query, variance))
    departure = query - match.latent
    metric = normal.metric[:LATENTS, :LATENTS]
    assert not torch.allclose(metric, torch.eye(LATENTS), atol=0.05)
    expected = torch.einsum("bihw,ij,bjhw->bhw", departure, metric, departure)
    torch.testing.assert_close(match.energy, expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(exemplars, "departure_metric", lambda covariance, _: torch.eye(len(covariance)))
    left_out_plain = collect(plain, latents, variance).energy
    assert float(left_out.mean()) == pytest.approx(float(left_out_plain.mean()), rel=1e-4)
    assert float((left_out - left_out_plain).abs().mean()) > 0.01 * float(left_out.mean())


def test_state_of_before_the_metric_loads() -> None:
    """A checkpoint without a metric has the plain one."""
    normal, variance = Exemplars(), torch.full((LATENTS,), 0.5)
    collect(normal, torch.randn(24, LATENTS, 4, 5), variance)
    state = normal.state_dict()
    del state["metric"]
    loaded = Exemplars()
    loaded.load_state_dict(state)
    assert torch.equal(loaded.metric, torch.eye(LATENTS + 1))

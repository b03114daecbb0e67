"""The feature VAE: the closed-form ELBO against its definition, the pPCA start, and the posterior by Bayes' rule."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from anomalib_vae_attention.vae import FeatureVAE

CHANNELS, LATENTS = 12, 4


def make_rows(count: int = 3000, channels: int = CHANNELS) -> torch.Tensor:
    """Draw correlated features of zero sample mean, of shape ``(count, channels)``, float64."""
    mixing = torch.randn(channels, channels, dtype=torch.float64) * torch.linspace(2, 0.2, channels)
    rows = torch.randn(count, channels, dtype=torch.float64) @ mixing.T
    return rows - rows.mean(0)


def make_vae(covariance: torch.Tensor, latents: int = LATENTS) -> FeatureVAE:
    """Make a float64 VAE at its probabilistic PCA start."""
    vae = FeatureVAE([len(covariance)], latents).double()
    vae.initialise(covariance)
    return vae


def as_cells(rows: torch.Tensor) -> torch.Tensor:
    """Arrange rows as images of one column, of shape ``(1, C, n, 1)``."""
    return rows.T[None, :, :, None]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3).filter(lambda channels: sum(channels) > 1),
    st.integers(1, 9),
    st.integers(1, 9),
    st.data(),
)
def test_adjoint_is_the_gradient(channels: list[int], height: int, width: int, data: st.DataObject) -> None:
    """The closed-form adjoint of the encoder, all layers together, is autograd's vector-Jacobian product."""
    vae = FeatureVAE(channels, data.draw(st.integers(1, sum(channels) - 1)))
    features = torch.randn(2, sum(channels), height, width, requires_grad=True)
    mean = vae.posterior(features).mean
    weight = torch.randn_like(mean)
    (expected,) = torch.autograd.grad(mean, features, weight)
    assert (vae.adjoint(weight) - expected).norm() <= 1e-5 * expected.norm()


def test_decoding_by_layer() -> None:
    """The layers that are decoded are those of one product with the whole decoder."""
    vae, latent = FeatureVAE([3, 1, 4], 2), torch.randn(2, 2, 5, 4)
    layers = vae.decode(latent)
    assert [layer.shape[1] for layer in layers] == [3, 1, 4]
    torch.testing.assert_close(torch.cat(layers, 1), vae.decoder(latent))


def test_elbo_is_the_average_over_cells() -> None:
    """The ELBO from moments equals the average over cells of the ELBO of each, expectations over q by quadrature."""
    rows = make_rows(500) + torch.randn(CHANNELS, dtype=torch.float64)
    vae = FeatureVAE([CHANNELS], LATENTS).double()
    with torch.no_grad():
        vae.log_variance.uniform_(-1, 1)
        vae.log_noise.fill_(-0.7)
    posterior = vae.posterior(as_cells(rows))
    noise = vae.log_noise.exp()
    # A squared error is quadratic in z: the two points a standard deviation away, each latent in its turn and scaled by
    # the root of their number, give its expectation over a diagonal Gaussian exactly.
    step = posterior.variance.sqrt() * math.sqrt(LATENTS)
    points = torch.cat([torch.diag(step), -torch.diag(step)])
    log_likelihood = torch.zeros(len(rows), dtype=torch.float64)
    for point in points:
        (decoded,) = vae.decode(posterior.mean + point.view(1, -1, 1, 1))
        density = torch.distributions.Normal(decoded, noise.sqrt()).log_prob(as_cells(rows))
        log_likelihood += density.sum(1).flatten() / len(points)
    q = torch.distributions.Normal(posterior.mean, posterior.variance.sqrt().view(1, -1, 1, 1))
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).flatten()
    terms = vae.elbo_terms(rows.mean(0), torch.cov(rows.T, correction=0))
    torch.testing.assert_close(terms["reconstruction"], -log_likelihood.mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(terms["kl"], kl.mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(terms["loss"], (kl - log_likelihood).mean(), rtol=1e-10, atol=0)


def test_elbo_of_the_start_is_the_log_likelihood() -> None:
    """At the start the bound is tight: the ELBO is the log-likelihood of the probabilistic PCA model."""
    rows = make_rows()
    covariance = torch.cov(rows.T, correction=0)
    vae = make_vae(covariance)
    weight = vae.decoder.weight[:, :, 0, 0]
    model = torch.distributions.MultivariateNormal(
        torch.zeros(CHANNELS, dtype=torch.float64),
        weight @ weight.T + vae.log_noise.exp() * torch.eye(CHANNELS, dtype=torch.float64),
    )
    loss = vae.elbo_terms(torch.zeros(CHANNELS, dtype=torch.float64), covariance)["loss"]
    torch.testing.assert_close(loss, -model.log_prob(rows).mean(), rtol=1e-9, atol=0)


def test_start_is_a_stationary_point_of_the_elbo() -> None:
    """Autograd finds no direction that improves the ELBO at the start, and does find one away from it."""
    covariance = torch.cov(make_rows().T, correction=0)
    vae = make_vae(covariance)
    mean = torch.zeros(CHANNELS, dtype=torch.float64)
    for gradient in torch.autograd.grad(vae.elbo_terms(mean, covariance)["loss"], list(vae.parameters())):
        assert gradient.abs().max() < 1e-9
    with torch.no_grad():
        vae.decoder.weight.mul_(1.01)
    gradients = torch.autograd.grad(vae.elbo_terms(mean, covariance)["loss"], list(vae.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) > 1e-4


def test_start_is_better_than_random_parameters_near_it() -> None:
    """The start is a minimum of the negative ELBO, not only a stationary point."""
    covariance = torch.cov(make_rows().T, correction=0)
    vae = make_vae(covariance)
    mean = torch.zeros(CHANNELS, dtype=torch.float64)
    best = vae.elbo_terms(mean, covariance)["loss"].item()
    start = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    for _ in range(20):
        vae.load_state_dict({name: tensor + 0.03 * torch.randn_like(tensor) for name, tensor in start.items()})
        assert vae.elbo_terms(mean, covariance)["loss"].item() > best


def test_latent_subspace_is_that_of_pca() -> None:
    """The decoder spans scikit-learn's principal subspace, and the noise is its noise variance."""
    rows = make_rows()
    vae = make_vae(torch.cov(rows.T))
    pca = PCA(LATENTS, svd_solver="full").fit(rows.numpy())
    ours = torch.linalg.qr(vae.decoder.weight[:, :, 0, 0].detach()).Q
    components = torch.from_numpy(pca.components_)
    torch.testing.assert_close(ours @ ours.T, components.T @ components, rtol=0, atol=1e-9)
    assert float(vae.log_noise.exp()) == pytest.approx(pca.noise_variance_, rel=1e-9)
    weight = vae.decoder.weight[:, :, 0, 0].detach()
    model = weight @ weight.T + vae.log_noise.exp().detach() * torch.eye(CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(model, torch.from_numpy(pca.get_covariance()), rtol=1e-9, atol=1e-9)


def test_posterior_is_bayes_rule() -> None:
    """At the start q(z|x) is the exact posterior of z under p(z) p(x|z)."""
    rows = make_rows()
    vae = make_vae(torch.cov(rows.T, correction=0))
    weight = vae.decoder.weight[:, :, 0, 0].detach()
    noise = vae.log_noise.exp().detach()
    precision = torch.eye(LATENTS, dtype=torch.float64) + weight.T @ weight / noise
    covariance = torch.linalg.inv(precision)
    expected = rows @ weight @ covariance.T / noise
    posterior = vae.posterior(as_cells(rows))
    torch.testing.assert_close(posterior.mean[0, :, :, 0].T, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.diag(posterior.variance), covariance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("latent_dim", [-1, 0, CHANNELS, CHANNELS + 1])
def test_latent_dim_out_of_range(latent_dim: int) -> None:
    """A number of latents that there cannot be is an error that names it and its range."""
    with pytest.raises(ValueError, match=rf"latent_dim must be from 1 to {CHANNELS - 1}.*but is {latent_dim}\b"):
        FeatureVAE([CHANNELS], latent_dim)


@pytest.mark.parametrize("latent_dim", [1, CHANNELS - 1])
def test_latent_dim_at_the_ends(latent_dim: int) -> None:
    """The least and the most latents work."""
    vae = make_vae(torch.cov(make_rows().T), latent_dim)
    assert vae.posterior(torch.randn(2, CHANNELS, 3, 5).double()).mean.shape == (2, latent_dim, 3, 5)


@pytest.mark.parametrize("rank", [0, 1, 2, LATENTS])
def test_covariance_without_full_rank_stays_finite(rank: int) -> None:
    """Fewer directions than latents, none at all too, give finite parameters, a finite ELBO and its gradient."""
    factor = torch.randn(CHANNELS, rank, dtype=torch.float64)
    covariance = factor @ factor.T
    vae = FeatureVAE([CHANNELS], LATENTS)
    vae.initialise(covariance)
    assert all(parameter.isfinite().all() for parameter in vae.parameters())
    loss = vae.elbo_terms(torch.zeros(CHANNELS, dtype=torch.float64), covariance)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())


def test_start_depends_on_the_covariance_alone() -> None:
    """The start is the same whatever the parameters were before."""
    covariance = torch.cov(make_rows().T)
    first, second = make_vae(covariance), make_vae(covariance)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name

"""What the latents leave out: the residual, the noise level, and how references carry it."""

import pytest
import torch
from sklearn.decomposition import PCA

from anomalib_vae_attention.reference import make_reference
from anomalib_vae_attention.vae import FeatureVAE, Posterior, carry_noise
from anomalib_vae_attention.vae.noise import NOISE_FLOOR

CHANNELS, LATENTS = 12, 4


def make_cells(count: int = 400) -> torch.Tensor:
    """Draw features ``(1, C, count, 1)`` of mean zero, float64, whose channels are correlated."""
    rows = torch.randn(count, CHANNELS, dtype=torch.float64) @ torch.randn(CHANNELS, CHANNELS, dtype=torch.float64)
    return (rows - rows.mean(0)).T[None, :, :, None]


def fit_vae(cells: torch.Tensor) -> FeatureVAE:
    """Fit a VAE to features ``(1, C, count, 1)``."""
    vae = FeatureVAE([5, CHANNELS - 5], LATENTS).double()
    rows = cells[0, :, :, 0]
    vae.initialise(rows @ rows.T / rows.shape[1])
    return vae


def test_residual_is_that_of_principal_components() -> None:
    """The residual is what scikit-learn's PCA does not reconstruct, and its noise is 1 on average."""
    cells = make_cells()
    vae = fit_vae(cells)
    residual = vae.residual(cells, vae.posterior(cells).mean)
    rows = cells[0, :, :, 0].T.numpy()
    pca = PCA(LATENTS, svd_solver="full").fit(rows)
    expected = torch.from_numpy(rows - pca.inverse_transform(pca.transform(rows)))
    torch.testing.assert_close(residual[0, :, :, 0].T, expected, rtol=1e-6, atol=1e-6)
    assert float(vae.noise(residual).mean()) == pytest.approx(1, rel=1e-6)


def test_gradient_of_the_noise() -> None:
    """The closed form is autograd's gradient, through the encoder and the projection."""
    cells = make_cells()
    vae = fit_vae(cells)
    features = make_cells(7).requires_grad_()
    residual = vae.residual(features, vae.posterior(features).mean)
    weight = torch.rand(1, 7, 1, dtype=torch.float64)
    (expected,) = torch.autograd.grad(0.5 * (weight * vae.noise(residual)).sum(), features)
    torch.testing.assert_close(vae.noise_gradient(residual, weight), expected)


@pytest.mark.parametrize("name", ["exemplars", "gaussian"])
def test_references_carry_the_level_but_do_not_compare_it(name: str) -> None:
    """Energies are the same for any noise, and the matched level is that of the images that were matched."""
    latent, variance = torch.randn(20, LATENTS, 3, 3), torch.full((LATENTS,), 0.5)
    loud = torch.where(torch.arange(20) % 2 == 0, 0.2, 5.0)[:, None, None].expand(-1, 3, 3)
    latent[:, 0] += torch.where(loud > 1, 30.0, -30.0)
    plain, carrying = make_reference(name, 100), make_reference(name, 100)
    for reference, posterior in (
        (plain, Posterior(latent, variance)),
        (carrying, carry_noise(Posterior(latent, variance), loud)),
    ):
        reference.start()
        reference.update(posterior)
        reference.finish()
    new = Posterior(latent + 0.1 * torch.randn_like(latent), variance)
    found = carrying.match(carry_noise(new, torch.full((20, 3, 3), 700.0)))
    torch.testing.assert_close(found.energy, plain.match(new).energy, rtol=0.02, atol=0.05)
    level = (loud + NOISE_FLOOR).log()
    # One Gaussian per cell knows but the mean level.
    expected = level if name == "exemplars" else level.mean(0).expand_as(level)
    torch.testing.assert_close(found.latent[:, -1], expected, rtol=0, atol=0.05)

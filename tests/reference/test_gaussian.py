"""The Gaussian reference against explicit means and covariances."""

import numpy as np
import pytest
import torch
from support import collect

from anomalib_vae_attention.reference import (
    Gaussian,
)
from anomalib_vae_attention.reference import gaussian as gaussian_module
from anomalib_vae_attention.vae import NOT_COMPARED, Posterior


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_gaussian_is_the_mahalanobis_distance(shrinkage: float) -> None:
    """Energies of the Gaussian are numpy's Mahalanobis distances with an explicit covariance at each cell."""
    latents, query = torch.randn(30, 4, 3, 2) * 2 + 1, torch.randn(5, 4, 3, 2)
    variance = torch.rand(4) + 0.1
    normal = Gaussian(shrinkage)
    collect(normal, latents, variance, batch=7)
    energy = normal.match(Posterior(query, variance)).energy
    rows = latents.double().numpy()
    cells = list(np.ndindex(3, 2))
    covariances = {cell: np.cov(rows[:, :, *cell].T, bias=True) for cell in cells}
    common = np.mean(list(covariances.values()), axis=0)
    for row, column in cells:
        mean = rows[:, :, row, column].mean(0)
        shrunk = (1 - shrinkage) * covariances[row, column] + shrinkage * common
        precision = np.linalg.inv(shrunk + 2 * np.diag(variance.double().numpy()))
        for image in range(5):
            difference = query[image, :, row, column].double().numpy() - mean
            assert energy[image, row, column] == pytest.approx(difference @ precision @ difference, rel=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5, 10, 40])
def test_gaussian_calibration_leaves_the_image_out(count: int) -> None:
    """Without shrinkage the calibration energies are those of a Gaussian of the other images."""
    latents, variance = torch.randn(count, 4, 3, 2) * 2 + 1, torch.rand(4) + 0.1
    energies = collect(Gaussian(shrinkage=0), latents, variance).energy
    assert energies.shape == (min(count, gaussian_module.CALIBRATION_IMAGES), 3, 2)
    for index, energy in enumerate(energies):
        others = Gaussian(shrinkage=0)
        collect(others, torch.cat([latents[:index], latents[index + 1 :]]), variance)
        expected = others.match(Posterior(latents[index][None], variance)).energy[0]
        torch.testing.assert_close(energy, expected, rtol=1e-4, atol=1e-4)


def test_gaussian_calibration_shrinks_towards_all_images() -> None:
    """With shrinkage only the covariance of all cells still knows the image, which is little of it."""
    latents, variance = torch.randn(20, 4, 6, 5) * 2 + 1, torch.rand(4) + 0.1
    energies = collect(Gaussian(), latents, variance).energy
    others = Gaussian()
    collect(others, latents[1:], variance)
    expected = others.match(Posterior(latents[:1], variance)).energy[0]
    torch.testing.assert_close(energies[0], expected, rtol=0.02, atol=0)


def test_gaussian_of_one_image() -> None:
    """One image is its own mean: finite precision, energy 0."""
    latents, variance = torch.randn(1, 4, 3, 2), torch.full((4,), 0.5)
    normal = Gaussian()
    energies = collect(normal, latents, variance).energy
    assert torch.equal(energies, torch.zeros(1, 3, 2))
    energy = normal.match(Posterior(latents + 1, variance)).energy
    torch.testing.assert_close(energy, torch.full((1, 3, 2), 4.0))


def test_memory_of_gaussian_does_not_grow() -> None:
    """The Gaussian is as large for many images as for few, collecting included."""

    def sizes(count: int) -> tuple[int, int]:
        normal = Gaussian()
        normal.start()
        for _ in range(count):
            normal.update(Posterior(torch.randn(8, 4, 3, 2), torch.ones(4)))
        collecting = sum(tensor.nbytes for tensor in [normal._sum, normal._outer, *normal._some])
        normal.finish()
        return collecting, sum(buffer.nbytes for buffer in normal.buffers())

    assert sizes(gaussian_module.CALIBRATION_IMAGES // 8) == sizes(10 * gaussian_module.CALIBRATION_IMAGES)


def test_gaussian_sums_keep_their_digits() -> None:
    """Latents far from 0 give the covariance they give near it."""
    latents, variance = torch.randint(-128, 128, (20, 4, 3, 2)) / 64, torch.full((4,), 0.5)
    near, far = Gaussian(), Gaussian()
    collect(near, latents, variance)
    collect(far, latents + 1e3, variance)
    torch.testing.assert_close(near.precision, far.precision, rtol=1e-5, atol=1e-6)


def test_the_noise_level_is_left_out() -> None:
    """What is not compared is not kept, and precisions of earlier checkpoints, which have it, judge alike."""
    latents, query = torch.randn(30, 5, 3, 2), torch.randn(2, 5, 3, 2)
    variance = torch.tensor([0.1, 0.2, 0.3, 0.4, NOT_COMPARED])
    normal, restored = Gaussian(), Gaussian()
    collect(normal, latents, variance)
    assert normal.precision.shape == (6, 4, 4)
    match = normal.match(Posterior(query, variance))
    earlier = torch.zeros(6, 5, 5).index_put_((torch.arange(6), *torch.full((2, 1), 4)), torch.tensor(5e-9))
    earlier[:, :4, :4] = normal.precision
    restored.load_state_dict({"mean": normal.mean, "precision": earlier})
    for ours, theirs in zip(restored.match(Posterior(query, variance)), match, strict=True):
        assert torch.equal(ours, theirs)
    assert match.latent.shape == query.shape

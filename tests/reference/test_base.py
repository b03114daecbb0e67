"""What all references promise."""

import pytest
import torch
from support import collect

from anomalib_vae_attention.reference import REFERENCES, Exemplars, Gaussian, make_reference
from anomalib_vae_attention.vae import Posterior


@pytest.mark.parametrize("name", REFERENCES)
def test_no_image(name: str) -> None:
    """A reference of no image is an error that says so."""
    normal = make_reference(name, 9)
    normal.start()
    with pytest.raises(ValueError, match="no normal image"):
        normal.finish()


@pytest.mark.parametrize("name", REFERENCES)
def test_gradient_is_that_of_half_the_energy(name: str) -> None:
    """The closed-form gradient is autograd's of half the sum of the energy, and of its definition, matches fixed."""
    normal = make_reference(name, 9)
    variance = torch.rand(6) + 0.2
    collect(normal, torch.randn(9, 6, 4, 5), variance)
    mean = torch.randn(3, 6, 4, 5, requires_grad=True)
    match = normal.match(Posterior(mean, variance))
    (expected,) = torch.autograd.grad(0.5 * match.energy.sum(), mean)
    assert (match.gradient - expected).norm() <= 1e-5 * expected.norm()
    if isinstance(normal, Exemplars):
        normal.level_power.zero_()
        match = normal.match(Posterior(mean, variance))
        departure = ((mean - match.latent.detach()) / (2 * variance.view(1, -1, 1, 1)).sqrt()).flatten(2)
        energy = torch.einsum("bip,ij,bjp->", departure, normal.metric[:6, :6], departure)
    elif isinstance(normal, Gaussian):
        rows = (mean - match.latent).flatten(2)
        energy = torch.einsum("bip,pij,bjp->", rows, normal.precision, rows)
    else:
        return
    (expected,) = torch.autograd.grad(0.5 * energy, mean)
    assert (match.gradient - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", REFERENCES)
def test_state_of_any_size_loads(name: str) -> None:
    """A fresh reference takes a fitted one's state, whatever the number and size of its images, and matches alike."""
    variance = torch.rand(3) + 0.2
    first, second = make_reference(name, 9), make_reference(name, 9)
    collect(first, torch.randn(5, 3, 2, 4), variance)
    collect(second, torch.randn(2, 3, 3, 3), variance)
    for other in (second, make_reference(name, 9)):
        other.load_state_dict(first.state_dict())
        posterior = Posterior(torch.randn(2, 3, 2, 4), variance)
        for ours, theirs in zip(other.match(posterior), first.match(posterior), strict=True):
            assert torch.equal(ours, theirs)

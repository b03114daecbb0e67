"""Energies are judged beside what is normal for what is seen."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from support import collect

from anomalib_vae_attention.reference import Exemplars
from anomalib_vae_attention.reference.energy_levels import LEVEL_FLOOR, LEVEL_POWER, energy_levels, judge_by_level
from anomalib_vae_attention.vae import Posterior


def test_levels_are_logarithms_averaged_over_cells() -> None:
    """They are SciPy's averages of five by five cells, the border continued, and 0 on average."""
    energy = torch.rand(3, 7, 9)
    logarithm = np.log(energy.numpy() / float(energy.mean()) + LEVEL_FLOOR)
    expected = np.stack([uniform_filter(image, 5, mode="nearest") for image in logarithm])
    np.testing.assert_allclose(energy_levels(energy).numpy(), expected - expected.mean(), atol=1e-5)


def test_at_full_power_maps_are_log_likelihoods() -> None:
    """Energy and attention add up to those of PyTorch's Gaussian with the level's variance, but for a constant."""
    energy, level, mean = 5 * torch.rand(4, 3, 3), torch.randn(4, 3, 3), torch.tensor(1.7)
    judged, factor = judge_by_level(energy, level, torch.ones(()), mean)
    shown = (judged + factor * energy) / mean
    likelihood = torch.distributions.Normal(0.0, (mean * level.exp()).sqrt()).log_prob(energy.sqrt())
    difference = shown + 4 * likelihood
    torch.testing.assert_close(difference, difference.mean().expand_as(difference), rtol=1e-4, atol=1e-4)


def test_what_never_varies_is_judged_more_strictly() -> None:
    """The same departure is more on the calm half of a part than on the restless one, where it would be alike."""
    restless = torch.arange(12) >= 6
    spread, variance = torch.where(restless, 3.0, 1.0), torch.full((8,), 0.5)
    part = 10 * torch.randn(8, 12, 12)
    normal = Exemplars()
    collect(normal, part + spread * torch.randn(20, 8, 12, 12), variance)
    assert 0 < float(normal.level_power) <= LEVEL_POWER
    query = Posterior(part[None] + 4, variance)
    levelled = normal.match(query)
    normal.level_power.zero_()
    plain = normal.match(query)
    away = torch.tensor([0, 1, 2, 9, 10, 11])
    more = (levelled.gradient / plain.gradient).mean((0, 1, 2))[away]
    assert (more[:3] > 1).all()
    assert (more[3:] < 1).all()
    assert float(more[0] / more[-1]) == pytest.approx(9**LEVEL_POWER, rel=0.25)


def test_exemplars_of_before_the_levels_judge_as_they_did() -> None:
    """A state of before has a latent less, and no power: energies are the plain ones."""
    variance = torch.full((4,), 0.5)
    normal, loaded = Exemplars(), Exemplars()
    collect(normal, torch.randn(9, 4, 3, 5), variance)
    state = normal.state_dict()
    for name in ("level_power", "mean_energy"):
        del state[name]
    for name in ("bank", "common", "common_centre", "centre", "scale", "step", "metric"):
        axis = 1 if name == "bank" else 0
        state[name] = state[name].narrow(axis, 0, 4)
    state["metric"] = state["metric"][:, :4]
    loaded.load_state_dict(state)
    normal.level_power.zero_()
    query = Posterior(torch.randn(5, 4, 3, 5), variance)
    for ours, theirs in zip(loaded.match(query), normal.match(query), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

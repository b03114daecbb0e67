"""What ``calibrate`` of the torch model weighs in maps and scores: noise, border, and shares of the map."""

from copy import deepcopy

import pytest
import torch
from support import Fitted

from anomalib_vae_attention.reference import LeftOut
from anomalib_vae_attention.resampling import at_border
from anomalib_vae_attention.scoring import highest_means
from anomalib_vae_attention.torch_model import VaeAttentionModel


def test_border_is_weighed_down_to_the_inside_but_never_up() -> None:
    """A ring of cells where normal images have more energy than inside gets their ratio, a calm one stays."""
    model = VaeAttentionModel(pre_trained=False, latent_dim=4)
    energy = torch.full((3, 12, 14), 6.0)
    energy[:, 1:-1, 1:-1] = 2.0
    energy[:, 2:-2, 2:-2] = 3.0
    model.calibrate(LeftOut(energy, energy))
    assert model.border_weight.tolist() == pytest.approx([0.5, 1.0])
    weight = at_border(model.border_weight, (12, 14))
    assert torch.equal(weight, torch.where(energy[0] > 5, 0.5, 1.0))
    model.calibrate(LeftOut(energy[:, :3, :3], energy[:, :3, :3]))
    assert model.border_weight.tolist() == [1.0, 1.0], "a grid without an inside"


def test_noise_counts_by_the_share_that_the_place_leaves() -> None:
    """The noise weighs as much as the latents where the place explains nothing, and nothing where it explains all.

    In a homogeneous texture it weighs up to twice as much.
    """
    model = VaeAttentionModel(pre_trained=False, latent_dim=4)
    energy = torch.full((3, 12, 14), 6.0)
    for share, mahalanobis, weight in ((0.0, 0.0, 6.0), (0.75, 0.0, 1.5), (1.0, 0.0, 0.0), (0.75, 1.0, 3.0)):
        model.calibrate(LeftOut(energy, energy), share, mahalanobis)
        assert float(model.noise_weight) == pytest.approx(weight)
        assert float(model.energy_scale) == pytest.approx(6 + weight)


def test_shares_of_the_map_count_by_what_normal_images_have() -> None:
    """A normal image whose map is its energies has a score of 1, whatever its peaks; of energies of zero, too."""
    model = VaeAttentionModel(pre_trained=False, latent_dim=4)
    energy = 10 * torch.rand(6, 20, 50).pow(4)
    model.calibrate(LeftOut(energy, energy), place_share=1.0)
    scores = (highest_means(energy / energy.mean()) * model.share_weights).sum(1)
    assert float(scores.mean()) == pytest.approx(1, abs=1e-5)
    assert (model.share_weights.diff() > 0).all(), "the highest cells of normal images are high, too"
    model.calibrate(LeftOut(0 * energy, 0 * energy))
    assert model.share_weights.tolist() == [0.25] * 4


def test_models_of_before_the_shares_judge_as_they_did(fitted: Fitted) -> None:
    """Without weights of the shares in a checkpoint, the score is the mean of the highest hundredth alone."""
    model = deepcopy(fitted.model.model)
    state = model.state_dict()
    del state["share_weights"]
    model.load_state_dict(state)
    assert model.share_weights.tolist() == [0, 1, 0, 0]


def test_border_counts_half_in_pictures_of_one_layout() -> None:
    """With the border at half its weight, maps are half as high there, the same inside, and scores follow."""
    images = torch.rand(2, 3, 96, 96)
    model = VaeAttentionModel(pre_trained=False, latent_dim=4).eval()
    model.vae.initialise(torch.diag(torch.linspace(2, 1, len(model.grid.mean), dtype=torch.float64)))
    reference = model.reference
    reference.start()
    with torch.no_grad():
        reference.update(model.posterior(model.grid(model.layers(torch.rand(6, 3, 96, 96))))[0])
        left_out = reference.finish()
        model.calibrate(left_out, place_share=0.499999)
        full = model.explain(images)
        model.calibrate(left_out, place_share=0.500001)
        half = model.explain(images)
    assert float(model.map_border) < 1
    torch.testing.assert_close(half.anomaly_map[:, 40:56, 40:56], full.anomaly_map[:, 40:56, 40:56])
    torch.testing.assert_close(half.anomaly_map[:, 0, 0], full.anomaly_map[:, 0, 0] / 2, rtol=0.02, atol=1e-3)
    assert (half.score <= full.score).all()

"""The exemplars that all places share, and how often each is normal at a place."""

import numpy as np
import pytest
import torch
from support import collect, keep, prior_of, shared, stored

from anomalib_vae_attention.reference import Exemplars
from anomalib_vae_attention.reference.place_prior import PRIOR_FLOOR, PRIOR_STEP
from anomalib_vae_attention.vae import Posterior


@pytest.mark.parametrize(
    ("images", "size", "count"), [(1, (1, 1), 0), (300, (1, 1), 0), (3, (5, 3), 45), (16, (30, 5), 1024)]
)
def test_number_of_shared_exemplars(images: int, size: tuple[int, int], count: int) -> None:
    """There are 1,024, or as many as there are latents; where there is one place only, none."""
    normal = Exemplars()
    collect(normal, torch.randn(images, 2, *size), torch.full((2,), 0.5))
    assert normal.common.shape == (2 + 1, count)


def test_parts_that_turn_are_known_by_the_shared_exemplars() -> None:
    """What is normal elsewhere, and new at a cell, is near; what is new everywhere is not, nor does it change maps."""
    places = 10 * torch.randn(12, 8)
    variance = torch.full((8,), 0.5)

    def turned(count: int) -> torch.Tensor:
        order = torch.stack([torch.randperm(12) for _ in range(count)])
        return (places[order] + 0.1 * torch.randn(count, 12, 8)).transpose(1, 2).reshape(count, 8, 3, 4)

    normal = Exemplars()
    collect(normal, turned(4), variance)
    new, foreign = turned(20), 10 * torch.randn(20, 8, 3, 4)
    known = normal.match(Posterior(new, variance)).nearest
    assert known.max() < 5
    assert normal.match(Posterior(foreign, variance)).nearest.min() > 50
    normal.common, normal.prior = normal.common[:, :0], normal.prior[:, :0]
    assert normal.match(Posterior(new, variance)).nearest.max() > 50


def test_what_is_normal_elsewhere_only_does_not_explain_a_misplaced_part() -> None:
    """Where half of the cells show one thing and half another, the other thing is a defect that keeps its energy."""
    things, variance = 10 * torch.randn(2, 8), torch.full((8,), 0.5)
    place = (torch.arange(10) < 5).long().expand(4, 10)

    def images(count: int) -> torch.Tensor:
        return (things[place] + 0.1 * torch.randn(count, 4, 10, 8)).permute(0, 3, 1, 2)

    normal = Exemplars()
    collect(normal, images(12), variance)
    misplaced = images(3)
    misplaced[:, :, 1, 1] = things[0][None]
    normal.level_power.zero_()
    match = normal.match(Posterior(misplaced, variance))
    full = float((things[0] - things[1]).square().sum())
    assert match.nearest[:, 1, 1].max() < 5, "it is normal somewhere"
    # exp(-energy / T) against a prior of at most PRIOR_FLOOR: the wrong thing wins only where it is very unlike.
    own = -full / float(normal.temperature)
    floor = np.log(PRIOR_FLOOR)
    assert (match.energy[:, 1, 1].min() > full / 2) == (own > floor)
    prior = prior_of(normal)
    belongs = ((shared(normal) - things[1]).square().sum(1) < (shared(normal) - things[0]).square().sum(1)).double()
    assert float(prior[1, 1] @ belongs) > 0.95
    assert float(prior[1, 8] @ belongs) < 0.05


def test_prior_counts_the_nearest_of_other_images() -> None:
    """The prior is the share of normal images, within a cell, that are nearest to each, counted in NumPy."""
    latents, variance = torch.randn(5, 3, 4, 6), torch.full((3,), 0.5)
    normal = Exemplars()
    collect(normal, latents, variance)
    # All latents are shared here; which image each is of follows from its values.
    everything = torch.stack(list(keep(latents))).permute(0, 2, 3, 1).double()
    image_of = torch.cdist(shared(normal), everything.reshape(-1, 3)).argmin(1) // 24
    queries = stored(normal)
    counts = np.zeros((4, 6, len(image_of)))
    for image, row, column in np.ndindex(5, 4, 6):
        distance = (shared(normal) - queries[image, row, column]).square().sum(1)
        distance[image_of == image] = torch.inf
        counts[row, column, int(distance.argmin())] += 1
    around = np.stack([
        np.stack([counts[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].sum((0, 1)) for c in range(6)]) for r in range(4)
    ])
    expected = around / around.sum(-1, keepdims=True) + PRIOR_FLOOR / len(image_of)
    np.testing.assert_allclose(prior_of(normal).numpy(), expected, rtol=PRIOR_STEP / 2 + 1e-6)


def test_exemplars_of_before_the_prior_load_where_no_cells_share_any() -> None:
    """A state dict of an image VAE from before the prior of shared exemplars gives the same matches."""
    variance = torch.full((4,), 0.5)
    normal, loaded = Exemplars(), Exemplars()
    collect(normal, torch.randn(9, 4, 1, 1), variance)
    state = {name: value for name, value in normal.state_dict().items() if name not in {"prior", "common_centre"}}
    loaded.load_state_dict(state)
    query = Posterior(torch.randn(5, 4, 1, 1), variance)
    for ours, theirs in zip(loaded.match(query), normal.match(query), strict=True):
        assert torch.equal(ours, theirs)

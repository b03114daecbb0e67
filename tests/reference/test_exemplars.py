"""The exemplars against plain loops over all of them."""

import numpy as np
import pytest
import torch
from support import collect, keep, prior_of, shared, stored

from anomalib_vae_attention.reference import Exemplars, Match, search
from anomalib_vae_attention.reference import exemplars as exemplars_module
from anomalib_vae_attention.vae import Posterior


def mix(
    here: torch.Tensor,
    others: list[torch.Tensor],
    variance: torch.Tensor,
    temperature: float,
    prior: torch.Tensor | float = 1.0,
) -> tuple[float, torch.Tensor, float]:
    """Mix exemplars for one latent, in float64; return energy, mixture and the energy to the nearest."""
    here, scale, stacked = here.double(), 1 / (2 * variance.double()), torch.stack(others).double()
    energies = ((here - stacked).square() * scale).sum(1)
    weight = prior * (-(energies - energies.min()) / temperature).exp()
    mixed = weight / weight.sum() @ stacked
    return float(((here - mixed).square() * scale).sum()), mixed, float(energies.min())


def match_all(
    query: torch.Tensor,
    exemplars: torch.Tensor,
    common: torch.Tensor,
    variance: torch.Tensor,
    temperature: float,
    prior: torch.Tensor,
) -> Match:
    """Match every cell by looking at its exemplars ``(N, h, w, d)`` and at the shared ones ``(K, d)``."""
    batch, _, height, width = query.shape
    energy, nearest = torch.zeros(2, batch, height, width, dtype=torch.float64)
    latent = torch.zeros_like(query)
    for image, row, column in np.ndindex(batch, height, width):
        others = [*exemplars[:, row, column], *common]
        own = torch.full((len(exemplars),), 1 / len(exemplars), dtype=torch.float64)
        weights = torch.cat([own, prior[row, column]])
        mixed = mix(query[image, :, row, column], others, variance, temperature, weights)
        energy[image, row, column], latent[image, :, row, column], nearest[image, row, column] = mixed
    return Match(energy, query - latent, latent, nearest)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("images", [1, 3])
def test_exemplars_are_those_of_the_cell(images: int, size: tuple[int, int]) -> None:
    """Every cell has the latents of all images there, to the rounding to bytes, of each image and then of all."""
    latents = torch.randn(images, 3, *size)
    normal = Exemplars()
    collect(normal, latents, torch.tensor([0.5, 0.125, 2.0]))
    greatest = (127 * normal.step / normal.scale)[:-1]
    assert normal.bank[:, :-1].nbytes == latents.numel()
    assert ((stored(normal) - latents.permute(0, 2, 3, 1)).abs() <= 0.005 * (greatest + latents.abs().amax())).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("images", [1, 2, 4])
def test_match_is_the_weighted_mean_of_the_exemplars(images: int, size: tuple[int, int]) -> None:
    """Energies and matches are those of a plain search among a cell's own exemplars and the shared ones."""
    latents, query = 20 * torch.randn(images, 3, *size), 20 * torch.randn(3, 3, *size)
    variance = torch.tensor([0.5, 0.125, 2.0])
    normal = Exemplars()
    collect(normal, latents, variance)
    normal.metric = torch.eye(4)
    normal.level_power.zero_()
    match = normal.match(Posterior(query, variance))
    expected = match_all(query, stored(normal), shared(normal), variance, float(normal.temperature), prior_of(normal))
    torch.testing.assert_close(match.energy.double(), expected.energy, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(match.nearest.double(), expected.nearest, rtol=1e-4, atol=2e-2)
    torch.testing.assert_close(match.latent, expected.latent, rtol=1e-4, atol=1e-3)


def test_each_image_of_a_batch_on_its_own() -> None:
    """What an image is matched with does not depend on the others of its batch."""
    variance = torch.rand(5) + 0.1
    normal = Exemplars()
    collect(normal, torch.randn(7, 5, 4, 6), variance)
    query = torch.randn(4, 5, 4, 6)
    together = normal.match(Posterior(query, variance))
    for index, image in enumerate(query):
        alone = normal.match(Posterior(image[None], variance))
        for ours, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(ours[0], theirs[index], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("floats", [1, 100, 1000])
def test_search_in_parts(floats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of some cells at a time gives what all cells at once give."""
    variance = torch.rand(5) + 0.1
    normal = Exemplars()
    collect(normal, torch.randn(7, 5, 4, 6), variance)
    posterior = Posterior(torch.randn(3, 5, 4, 6), variance)
    calls = []
    multiply = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda query, bank: calls.append(len(query)) or multiply(query, bank))
    whole = normal.match(posterior)
    assert len(calls) == 2
    monkeypatch.setattr(search, "SEARCH_BYTES", 4 * floats)
    parts = normal.match(posterior)
    assert len(calls) > 4
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_match_depends_smoothly_on_the_image() -> None:
    """Between two exemplars that are equally near, a small step to either side changes the match little."""
    normal, variance = Exemplars(), torch.full((2,), 0.5)
    collect(normal, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 5.0]])[:, :, None, None], variance)
    query = torch.tensor([[-1e-3, 0.0], [1e-3, 0.0]])[:, :, None, None]
    before, after = normal.match(Posterior(query, variance)).latent[..., 0, 0]
    assert (after - before).norm() < 0.01
    assert after[0] == pytest.approx(-before[0]) != 0


def test_a_stored_exemplar_has_no_energy() -> None:
    """An image that the reference knows is at no distance from the nearest, but for the rounding to a byte."""
    latents, variance = torch.randn(6, 16, 5, 4) + 5, torch.full((16,), 0.2)
    normal = Exemplars()
    collect(normal, latents, variance)
    match = normal.match(Posterior(latents, variance))
    foreign = normal.match(Posterior(torch.randn(6, 16, 5, 4) + 5, variance))
    assert match.nearest.max() < 2e-2
    assert foreign.nearest.min() > 1
    assert match.energy.mean() < foreign.energy.mean()


def test_calibration_leaves_the_image_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration energies of exemplars are those of a search among the other images."""
    monkeypatch.setattr(exemplars_module, "LEVEL_POWER", 0.0)
    latents, variance = 20 * torch.randn(4, 3, 3, 4), torch.tensor([0.5, 0.125, 2.0])
    normal = Exemplars()
    left_out = collect(normal, latents, variance)
    # Calibration takes the image itself as it was kept, in bytes; here all latents are shared, which are not.
    exemplars, everything = stored(normal), torch.stack(list(keep(latents))).double().permute(0, 2, 3, 1)
    query = exemplars.permute(0, 3, 1, 2).float()
    for index in range(4):
        rest = [other for other in range(4) if other != index]
        temperature, prior = float(normal.temperature), prior_of(normal)
        of_image = torch.cdist(shared(normal), everything.flatten(0, 2)).argmin(1) // 12
        keeps = of_image != index
        common = shared(normal)[keeps]
        # Where it stands for all images, an exemplar of a cell weighs one over their number.
        expected = match_all(
            query[index][None], exemplars[rest], common, variance, temperature, 4 / 3 * prior[..., keeps]
        )
        torch.testing.assert_close(left_out.energy[index].double(), expected.energy[0], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(left_out.nearest[index].double(), expected.nearest[0], rtol=1e-4, atol=2e-2)
    assert left_out.energy.shape == left_out.nearest.shape == (4, 3, 4)
    own = torch.stack([
        (query[index] - query[[other for other in range(4) if other != index]]).square().permute(0, 2, 3, 1)
        @ (0.5 / variance)
        for index in range(4)
    ])
    assert float(normal.temperature) == pytest.approx(0.5 * float(own.amin(1).mean()), rel=1e-4)


def test_calibration_of_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only image is compared with itself, each cell with all others but not with itself."""
    monkeypatch.setattr(exemplars_module, "LEVEL_POWER", 0.0)
    latents, variance = 20 * torch.randn(1, 3, 3, 4), torch.full((3,), 0.5)
    normal = Exemplars()
    energy = collect(normal, latents, variance).energy
    everything = keep(latents)[0].double().flatten(1).T
    for cell in range(12):
        others = [everything[other] for other in range(12) if other != cell]
        expected, _, _ = mix(everything[cell], others, variance, float(normal.temperature))
        assert float(energy.flatten()[cell]) == pytest.approx(expected, rel=1e-4, abs=1e-2)


def test_calibration_of_one_image_of_one_cell_is_finite() -> None:
    """One image of one cell has nothing to be compared with, and yet no infinite energy."""
    left_out = collect(Exemplars(), torch.randn(1, 3, 1, 1), torch.full((3,), 0.5))
    assert left_out.energy.isfinite().all()
    assert left_out.nearest.tolist() == [[[0.0]]]


def test_calibration_of_duplicates() -> None:
    """Of images that are there twice, the copy is not left out: their energy is 0 but for rounding."""
    latents = torch.randn(3, 4, 3, 3)
    left_out = collect(Exemplars(), torch.cat([latents, latents]), torch.full((4,), 0.5))
    assert left_out.nearest.shape == (6, 3, 3)
    assert left_out.nearest.max() < 1e-2


def test_calibration_takes_images_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more images than it takes, calibration takes the first, the last, and the rest evenly; levels take all."""
    some = exemplars_module.CALIBRATION_IMAGES
    count = 3 * some
    normal, taken = Exemplars(), []
    found = normal._search
    monkeypatch.setattr(
        normal, "_search", lambda mean, leave_out: taken.extend(leave_out.tolist()) or found(mean, leave_out)
    )
    left_out = collect(normal, torch.randn(count, 2, 2, 2), torch.full((2,), 0.5))
    assert left_out.energy.shape == (some, 2, 2)
    assert taken[:some] == taken[-some:] == torch.linspace(0, count - 1, some).round().int().tolist()
    assert sorted(taken[:-some]) == list(range(count))


def test_memory_of_exemplars_is_bounded() -> None:
    """Of more images than max_exemplars a sample of that size is kept, a byte a latent, the same in every run."""
    variance = torch.full((8,), 0.5)
    latents = torch.randint(-30, 30, (200, 8, 2, 3)).float()
    normal = Exemplars(max_exemplars=16)
    left_out = collect(normal, latents, variance, batch=32)
    assert normal.bank.shape == (6, 8 + 1, 16)
    assert normal.bank.nbytes == 16 * 9 * 2 * 3
    assert len(left_out.energy) == 16
    normal.common, normal.prior = normal.common[:, :0], normal.prior[:, :0]
    kept = normal.match(Posterior(latents, variance)).nearest.amax((1, 2)) < 1
    assert int(kept.sum()) == 16
    assert kept[16:].sum() > 5, "a sample of all images, not the first ones"
    again = Exemplars(max_exemplars=16)
    collect(again, latents, variance, batch=7)
    assert torch.equal(again.bank, normal.bank)
    collect(normal, latents, variance)
    assert torch.equal(again.bank, normal.bank), "collecting anew starts anew"


def test_the_sample_is_fair() -> None:
    """Early and late images have the same chance to be kept."""
    count = 2000
    normal = Exemplars(max_exemplars=500)
    normal.start()
    normal.update(Posterior(torch.arange(count).float().view(count, 1, 1, 1), torch.ones(1)))
    kept = torch.stack(list(normal._kept))[:, 0].flatten()
    assert len(kept.unique()) == 500
    # The mean of 500 of 2000 numbers has a standard deviation of 22.4.
    assert kept.mean() == pytest.approx(count / 2, abs=4 * 22.4)
    normal.finish()

"""The exemplars against plain loops over all of them."""

import numpy as np
import pytest
import torch
from support import collect

from anomalib_vae_attention.reference import (
    Exemplars,
    Match,
)
from anomalib_vae_attention.reference import exemplars as exemplars_module
from anomalib_vae_attention.reference.bank import gather
from anomalib_vae_attention.reference.exemplars import HIDDEN
from anomalib_vae_attention.vae import Posterior


def mix(
    here: torch.Tensor,
    others: list[torch.Tensor],
    variance: torch.Tensor,
    temperature: float,
) -> tuple[float, torch.Tensor, float]:
    """Mix exemplars for one latent, in float64; return energy, mixture and the energy to the nearest."""
    here, scale, stacked = here.double(), 1 / (2 * variance.double()), torch.stack(others).double()
    energies = ((here - stacked).square() * scale).sum(1)
    mixed = (-energies / temperature).softmax(0) @ stacked
    return float(((here - mixed).square() * scale).sum()), mixed, float(energies.min())


def stored(normal: Exemplars, images: int) -> torch.Tensor:
    """Return the exemplars that a reference holds, of shape ``(N, k, h, w, d)``; not a number outside the image."""
    latent_dim, height, width = normal.centre.shape
    whitened = (normal.bank.double() * normal.step[:, None]).permute(2, 0, 1)
    whitened = whitened.masked_fill((normal.half_norm[:, 0].T > HIDDEN / 2)[:, :, None], torch.nan)
    latents = (whitened.view(-1, height, width, latent_dim) / normal.scale) + normal.centre.permute(1, 2, 0)
    return latents.view(images, -1, height, width, latent_dim)


def match_all(query: torch.Tensor, exemplars: torch.Tensor, variance: torch.Tensor, temperature: float) -> Match:
    """Match every cell by looking at all of its exemplars ``(N, k, h, w, d)``."""
    batch, _, height, width = query.shape
    energy, nearest = torch.zeros(2, batch, height, width, dtype=torch.float64)
    latent = torch.zeros_like(query)
    for image, row, column in np.ndindex(batch, height, width):
        others = [other for other in exemplars[:, :, row, column].flatten(0, 1) if other.isfinite().all()]
        mixed = mix(query[image, :, row, column], others, variance, temperature)
        energy[image, row, column], latent[image, :, row, column], nearest[image, row, column] = mixed
    return Match(energy, query - latent, latent, nearest)


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("images", [1, 3])
def test_exemplars_are_those_of_the_cell_and_around_it(images: int, size: tuple[int, int], radius: int) -> None:
    """Every cell has the latents of all images there and around, to the rounding of halves and bytes."""
    variance, (height, width) = torch.tensor([0.5, 0.125, 2.0]), size
    latents = torch.randn(images, 3, *size)
    normal = Exemplars(radius=radius)
    collect(normal, latents, variance)
    exemplars = stored(normal, images)
    greatest = 127 * normal.step / normal.scale
    assert normal.bank.nbytes == images * (2 * radius + 1) ** 2 * 3 * height * width
    for index, offset, row, column in np.ndindex(*exemplars.shape[:4]):
        y, x = row + offset // (2 * radius + 1) - radius, column + offset % (2 * radius + 1) - radius
        ours = exemplars[index, offset, row, column]
        if 0 <= y < height and 0 <= x < width:
            assert ((ours - latents[index, :, y, x]).abs() <= 0.005 * greatest + 2e-3).all()
        else:
            assert ours.isnan().all()


@pytest.mark.parametrize("radius", [0, 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("images", [1, 2, 4])
def test_match_is_the_weighted_mean_of_the_exemplars(images: int, size: tuple[int, int], radius: int) -> None:
    """Energies and matches are those of a plain search, at borders too."""
    latents, query = 20 * torch.randn(images, 3, *size), 20 * torch.randn(3, 3, *size)
    variance = torch.tensor([0.5, 0.125, 2.0])
    normal = Exemplars(radius=radius)
    collect(normal, latents, variance)
    match = normal.match(Posterior(query, variance))
    expected = match_all(query, stored(normal, images), variance, float(normal.temperature))
    torch.testing.assert_close(match.energy.double(), expected.energy, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(match.nearest.double(), expected.nearest, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(match.latent, expected.latent, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("images", "radius"), [(1, 10), (5, 4), (28, 1), (56, 1)])
def test_few_images_are_helped_by_the_cells_around(images: int, radius: int) -> None:
    """Where cells look alike, those around them are used, as many as make up 512 but no more."""
    latents, variance = torch.randn(images, 2, 3, 4), torch.full((2,), 0.5)
    normal, expected = Exemplars(), Exemplars(radius=radius)
    collect(normal, latents, variance)
    collect(expected, latents, variance)
    assert normal.bank.shape[2] == images * (2 * radius + 1) ** 2
    assert torch.equal(normal.bank, expected.bank)
    posterior = Posterior(torch.randn(2, 2, 3, 4), variance)
    for ours, theirs in zip(normal.match(posterior), expected.match(posterior), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("images", "most"), [(57, 512), (209, 512), (512, 512), (600, 600)])
def test_a_sample_of_the_cells_around_has_a_bound(images: int, most: int) -> None:
    """Of more than 512, each cell has a sample of its own, every exemplar one of those around it."""
    latents, variance = torch.randn(images, 2, 3, 4), torch.full((2,), 0.5)
    normal, everything = Exemplars(), Exemplars(radius=1)
    collect(normal, latents, variance)
    collect(everything, latents, variance)
    assert normal.bank.shape == (12, 2, most)
    near = everything.bank * everything.step[:, None]
    for cell, bank in enumerate(normal.bank * normal.step[:, None]):
        inside = normal.half_norm[cell, 0] < HIDDEN / 2
        gap = torch.cdist(bank[:, inside].T, near[cell].T).amin(1)
        assert gap.max() <= (normal.step.max() + everything.step.max())


def test_each_cell_has_a_sample_of_its_own() -> None:
    """What one cell's sample lacks, that of the next one may have."""
    latents = torch.arange(100.0).view(100, 1, 1, 1).expand(100, 1, 3, 4)
    bank = gather(list(latents), latents.mean(0), torch.ones(1), radius=1, most=200)
    assert bank.image.shape == (12, 200)
    assert len({tuple(cell.tolist()) for cell in bank.image}) == 12
    values = bank.steps * bank.step[:, None] + 49.5
    inside = bank.outside[:, 0] == 0
    assert torch.equal(values[:, 0][inside].round().long(), bank.image[inside])
    assert torch.equal(bank.outside[5], torch.zeros(1, 200))
    assert 0.3 < bank.outside[0].mean() < 0.8


@pytest.mark.parametrize("images", [28, 209])
def test_parts_that_lie_alike_are_compared_with_their_own_cell(images: int) -> None:
    """Where every cell looks different and always the same, the cells around it say nothing."""
    latents, variance = torch.randn(2, 3, 4) * 10 + torch.randn(images, 2, 3, 4) * 0.1, torch.full((2,), 0.5)
    normal, expected = Exemplars(), Exemplars(radius=0)
    collect(normal, latents, variance)
    collect(expected, latents, variance)
    assert torch.equal(normal.bank, expected.bank)


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


@pytest.mark.parametrize("cells", [1, 5, 23])
def test_search_in_parts(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of some cells at a time gives what all cells at once give."""
    variance = torch.rand(5) + 0.1
    normal = Exemplars(radius=1)
    collect(normal, torch.randn(7, 5, 4, 6), variance)
    posterior = Posterior(torch.randn(3, 5, 4, 6), variance)
    whole = normal.match(posterior)
    sizes = []
    multiply = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda query, bank: sizes.append(len(query)) or multiply(query, bank))
    monkeypatch.setattr(exemplars_module, "SEARCH_BYTES", cells * 4 * 7 * 9 * (5 + 3))
    parts = normal.match(posterior)
    assert max(sizes) == cells
    assert sum(sizes) == 24
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_match_depends_smoothly_on_the_image() -> None:
    """Between two exemplars that are equally near, a small step to either side changes the match little."""
    normal, variance = Exemplars(radius=0), torch.full((2,), 0.5)
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


@pytest.mark.parametrize("radius", [0, 1])
def test_calibration_leaves_the_image_out(radius: int) -> None:
    """Calibration energies of exemplars are those of a search among the other images."""
    latents, variance = 20 * torch.randn(4, 3, 3, 4), torch.tensor([0.5, 0.125, 2.0])
    normal = Exemplars(radius=radius)
    left_out = collect(normal, latents, variance)
    # Calibration takes the image itself as it was kept, in half precision.
    query, exemplars = latents.half().float(), stored(normal, 4)
    for index in range(4):
        others = torch.cat([exemplars[:index], exemplars[index + 1 :]])
        expected = match_all(query[index][None], others, variance, float(normal.temperature))
        torch.testing.assert_close(left_out.energy[index].double(), expected.energy[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(left_out.nearest[index].double(), expected.nearest[0], rtol=1e-4, atol=1e-2)
    assert left_out.energy.shape == left_out.nearest.shape == (4, 3, 4)
    assert float(normal.temperature) == pytest.approx(0.5 * float(left_out.nearest.mean()))


def test_calibration_of_one_image() -> None:
    """The only image is compared with itself, each cell with those around it but not with itself."""
    latents, variance = 20 * torch.randn(1, 3, 3, 4), torch.full((3,), 0.5)
    normal = Exemplars(radius=1)
    (energy,), _ = collect(normal, latents, variance)
    exemplars = stored(normal, 1)
    exemplars[:, 4] = torch.nan
    expected = match_all(latents.half().float(), exemplars, variance, float(normal.temperature))
    torch.testing.assert_close(energy.double(), expected.energy[0], rtol=1e-4, atol=1e-3)


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
    """Of more images than it takes, calibration takes the first, the last, and the rest evenly."""
    count = 3 * exemplars_module.CALIBRATION_IMAGES
    normal, taken = Exemplars(), []
    search = normal._search
    monkeypatch.setattr(
        normal, "_search", lambda mean, leave_out: taken.extend(leave_out.tolist()) or search(mean, leave_out)
    )
    left_out = collect(normal, torch.randn(count, 2, 2, 2), torch.full((2,), 0.5))
    assert left_out.energy.shape == (exemplars_module.CALIBRATION_IMAGES, 2, 2)
    assert taken == 2 * torch.linspace(0, count - 1, exemplars_module.CALIBRATION_IMAGES).round().int().tolist()


def test_memory_of_exemplars_is_bounded() -> None:
    """Of more images than max_exemplars a sample of that size is kept, a byte a latent, the same in every run."""
    variance = torch.full((8,), 0.5)
    latents = torch.randint(-30, 30, (200, 8, 2, 3)).float()
    normal = Exemplars(max_exemplars=16, radius=0)
    left_out = collect(normal, latents, variance, batch=32)
    assert normal.bank.shape == (6, 8, 16)
    assert normal.bank.nbytes == 16 * 8 * 2 * 3
    assert len(left_out.energy) == 16
    kept = normal.match(Posterior(latents, variance)).nearest.amax((1, 2)) < 1
    assert int(kept.sum()) == 16
    assert kept[16:].sum() > 5, "a sample of all images, not the first ones"
    again = Exemplars(max_exemplars=16, radius=0)
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
    kept = torch.stack(normal._kept).flatten()
    assert len(kept.unique()) == 500
    # The mean of 500 of 2000 numbers has a standard deviation of 22.4.
    assert kept.mean() == pytest.approx(count / 2, abs=4 * 22.4)
    normal.finish()

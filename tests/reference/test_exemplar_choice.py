"""What of the exemplars is kept, against plain loops over all distances."""

import pytest
import torch
from support import keep

from anomalib_vae_attention.reference import exemplar_choice
from anomalib_vae_attention.reference.byte_latents import BLOCK, KeptLatents
from anomalib_vae_attention.reference.exemplar_choice import LEAST_EXEMPLARS, TOLERANCE, Bank, choose_common, choose_own


def make(latents: torch.Tensor) -> tuple[Bank, torch.Tensor, torch.Tensor]:
    """Return the bank of latents ``(N, d, h, w)``, and those that it has and all of each cell, ``(h w, K or N, d)``."""
    images = keep(latents)
    # Around 0, which is not quite their mean.
    step = images.align(torch.zeros(latents.shape[1:]), torch.ones(latents.shape[1]))
    bank = choose_own(images, step)
    everything = torch.stack(list(images)).flatten(2).permute(2, 0, 1)
    return bank, (bank.steps * step[:, None]).mT.double(), everything.double()


@pytest.mark.parametrize(("images", "size"), [(LEAST_EXEMPLARS, (4, 4)), (200, (1, 1))])
def test_few_images_and_grids_of_one_cell_are_kept(images: int, size: tuple[int, int]) -> None:
    bank, kept, everything = make(torch.randn(images, 3, *size))
    assert torch.equal(kept, everything)
    assert bank.image.tolist() == [list(range(images))] * kept.shape[0]
    assert bank.image.dtype == torch.int64


@pytest.mark.parametrize("count", [1, BLOCK, 2 * BLOCK + 5])
def test_latents_are_kept_as_in_a_list(count: int) -> None:
    """To half a step of the greatest of each latent in each image."""
    latents = torch.randn(count, 3, 4, 2) * torch.tensor([0.01, 1.0, 100.0])[:, None, None]
    kept, expected = keep(latents), latents.clone()
    kept[count - 1] = expected[count - 1] = torch.ones(3, 4, 2)
    assert len(kept) == count
    allowed = 0.501 * expected.abs().amax((2, 3), keepdim=True) / 127
    assert ((torch.stack(list(kept)) - expected).abs() <= allowed).all()
    for number in (-1, count):
        with pytest.raises(IndexError, match=f"no image {number} among {count}"):
            kept[number]
    assert not list(KeptLatents())


def test_aligned_latents_are_whitened_in_common_steps() -> None:
    latents, centre = 30 * torch.randn(BLOCK + 5, 3, 4, 2) + 7, torch.randn(3, 4, 2)
    scale = torch.tensor([0.1, 1.0, 5.0])
    images = keep(latents)
    whitened = (torch.stack(list(images)) - centre) * scale[:, None, None]
    step = images.align(centre, scale)
    assert ((torch.stack(list(images)) - whitened).abs() <= 0.501 * step[:, None, None]).all()
    torch.testing.assert_close(127 * step, whitened.abs().amax((0, 2, 3)))
    row = images.row(2)
    assert row.dtype == torch.int8
    assert torch.equal(row * step[:, None], torch.stack(list(images))[:, :, 2])


@pytest.mark.parametrize("memory", [2**25, 1])
def test_the_first_of_the_greedy_k_centre_are_kept(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as keep the mean distance to the nearest other, computed with all distances, within the tolerance."""
    monkeypatch.setattr(exemplar_choice, "DISTANCE_BYTES", memory)
    monkeypatch.setattr(exemplar_choice, "TRIED_IMAGES", 1000)
    bank, kept, cells = make(torch.randn(130, 12, 2, 3))
    count = kept.shape[1]
    assert LEAST_EXEMPLARS < count < 130
    assert count % 16 == 0
    nearest = {size: [] for size in (count - 16, count, 130)}
    for everything, image, kept_here in zip(cells, bank.image, kept, strict=True):
        distance = torch.cdist(everything, everything, compute_mode="donot_use_mm_for_euclid_dist").square()
        chosen = [int(everything.square().sum(1).argmax())]
        while len(chosen) < 130:
            gap = distance[:, chosen].amin(1)
            gap[chosen] = -1
            chosen.append(int(gap.argmax()))
        assert image.tolist() == chosen[:count]
        assert torch.equal(kept_here, everything[chosen[:count]])
        others = distance.fill_diagonal_(torch.inf)
        for size, found in nearest.items():
            found.append(others[:, chosen[:size]].amin(1))
    mean = {size: float(torch.stack(found).mean()) for size, found in nearest.items()}
    assert mean[count] <= (1 + TOLERANCE) * mean[130] < mean[count - 16]


def test_copies_are_left_out() -> None:
    """Where all images are alike but for 20 places, each of these is kept."""
    places = torch.randn(20, 6, 3, 3)
    _, kept, _ = make(places[torch.arange(300) % 20])
    assert kept.shape == (9, LEAST_EXEMPLARS, 6)
    for cell in kept:
        assert len(cell.unique(dim=0)) == 20


def test_identical_images_have_a_bank() -> None:
    bank, _, _ = make(torch.ones(100, 4, 2, 2))
    assert bank.steps.shape == (4, 4, LEAST_EXEMPLARS)


def test_shared_exemplars_are_unlike_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few latents that are rare and many that are alike, the rare ones are all chosen, where chance takes few."""
    monkeypatch.setattr(exemplar_choice, "COMMON", 40)
    latents = 0.01 * torch.randn(40, 4, 10, 10)
    latents[:30, :, 3, 7] = 10 * torch.randn(30, 4)
    kept = keep(latents)
    latents = torch.stack(list(kept))
    rare = latents[:30, :, 3, 7]
    common = choose_common(kept, torch.ones(4))
    picked = latents.flatten(2)[common.image, :, common.cell]
    assert {tuple(latent) for latent in rare.tolist()} <= {tuple(latent) for latent in picked.tolist()}
    torch.testing.assert_close(picked, common.latent.T + common.centre)
    torch.testing.assert_close(common.centre, latents.mean((0, 2, 3)))
    assert len(picked.unique(dim=0)) == 40


def test_shared_exemplars_are_each_the_farthest_from_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The greedy k-centre, computed with all distances in double precision."""
    monkeypatch.setattr(exemplar_choice, "COMMON", 30)
    kept, scale = keep(torch.randn(6, 3, 4, 5)), torch.tensor([1.0, 2.0, 0.5])
    latents = torch.stack(list(kept))
    common = choose_common(kept, scale)
    everything = (latents.permute(0, 2, 3, 1).reshape(-1, 3) * scale).double()
    chosen = [int((everything - everything.mean(0)).square().sum(1).argmax())]
    for _ in range(29):
        chosen.append(int(torch.cdist(everything, everything[chosen]).amin(1).argmax()))
    torch.testing.assert_close((common.latent.T + common.centre).double(), everything[chosen])

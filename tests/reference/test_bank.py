"""What of the exemplars is kept, against plain loops over all distances."""

import pytest
import torch

from anomalib_vae_attention.reference import bank as bank_module
from anomalib_vae_attention.reference.bank import LEAST_EXEMPLARS, TOLERANCE, Bank, gather, thin


def make(latents: torch.Tensor) -> Bank:
    """Gather latents ``(N, d, h, w)`` around 0, which is not quite their mean."""
    return gather(list(latents), torch.zeros(latents.shape[1:]), torch.ones(latents.shape[1]))


def values(bank: Bank) -> torch.Tensor:
    """Return the exemplars of each cell, of shape ``(h w, K, d)``."""
    return (bank.steps * bank.step[:, None]).mT.double()


@pytest.mark.parametrize(("images", "size"), [(LEAST_EXEMPLARS, (4, 4)), (200, (1, 1))])
def test_few_images_and_grids_of_one_cell_are_kept(images: int, size: tuple[int, int]) -> None:
    bank = make(torch.randn(images, 3, *size))
    kept = thin(bank)
    assert torch.equal(kept.steps, bank.steps)
    assert torch.equal(kept.image, bank.image)


@pytest.mark.parametrize("memory", [2**27, 1])
def test_the_first_of_the_greedy_k_centre_are_kept(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as keep the mean distance to the nearest other, computed with all distances, within the tolerance."""
    monkeypatch.setattr(bank_module, "DISTANCE_BYTES", memory)
    monkeypatch.setattr(bank_module, "TRIED_IMAGES", 1000)
    bank = make(torch.randn(130, 12, 2, 3))
    kept = thin(bank)
    count = kept.image.shape[1]
    assert LEAST_EXEMPLARS < count < 130
    assert count % 16 == 0
    nearest = {size: [] for size in (count - 16, count, 130)}
    for everything, image, kept_here in zip(values(bank), kept.image, values(kept), strict=True):
        distance = torch.cdist(everything, everything, compute_mode="donot_use_mm_for_euclid_dist").square()
        chosen = [int(everything.square().sum(1).argmax())]
        while len(chosen) < 130:
            gap = distance[:, chosen].amin(1)
            gap[chosen] = -1
            chosen.append(int(gap.argmax()))
        assert image.tolist() == chosen[:count]
        assert torch.equal(kept_here, everything[image])
        others = distance.fill_diagonal_(torch.inf)
        for size, found in nearest.items():
            found.append(others[:, chosen[:size]].amin(1))
    mean = {size: float(torch.stack(found).mean()) for size, found in nearest.items()}
    assert mean[count] <= (1 + TOLERANCE) * mean[130] < mean[count - 16]


def test_copies_are_left_out() -> None:
    """Where all images are alike but for 20 places, each of these is kept."""
    places = torch.randn(20, 6, 3, 3)
    kept = thin(make(places[torch.arange(300) % 20]))
    assert kept.steps.shape == (9, 6, LEAST_EXEMPLARS)
    for cell in values(kept):
        assert len(cell.unique(dim=0)) == 20


def test_identical_images_have_a_bank() -> None:
    kept = thin(make(torch.ones(100, 4, 2, 2)))
    assert kept.steps.shape == (4, 4, LEAST_EXEMPLARS)

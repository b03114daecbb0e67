"""Images by index and by factors, and batches that a resumed run sees again."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_vae_attention.dsprites.datamodule import DSpritesDataModule
from anomalib_vae_attention.dsprites.dataset import DSprites, factors_at, index_of
from anomalib_vae_attention.dsprites.drawing import draw_grid
from anomalib_vae_attention.dsprites.store import unpack


def test_index_runs_over_the_factors_in_the_published_order(sprites: DSprites) -> None:
    """The last factor, y, runs fastest."""
    assert len(sprites) == 737_280
    assert factors_at(torch.tensor([0, 1, 32, 1024, 40_960, 245_760])).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
    ]
    index = torch.randint(len(sprites), (100,))
    assert torch.equal(index_of(factors_at(index)), index)


def test_images_of_factors_are_those_drawn(sprites: DSprites) -> None:
    factors = torch.cat([sprites.sample_factors(20), torch.tensor([[2, 5, 39, 31, 31], [0, 0, 0, 0, 0]])])
    images = sprites.images_of(factors)
    assert images.shape == (22, 1, 64, 64)
    assert images.dtype == torch.float32
    for image, (shape, scale, turn, x, y) in zip(images, factors.tolist(), strict=True):
        assert np.array_equal(image[0].numpy(), unpack(draw_grid(shape, scale, turn)[x, y]))
    one = sprites[int(index_of(factors[3]))]
    assert torch.equal(one.image, images[3])
    assert torch.equal(one.factors, factors[3])


def test_samples_cover_every_value(sprites: DSprites) -> None:
    """And one generator gives one sequence."""
    first, second = (sprites.sample_factors(2000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert [len(column.unique()) for column in first.T] == list(sprites.factor_sizes)


@pytest.mark.parametrize(("column", "value", "name"), [(0, 3, "shape"), (2, -1, "orientation"), (4, 32, "y")])
def test_factor_out_of_range(column: int, value: int, name: str, sprites: DSprites) -> None:
    factors = torch.zeros(2, 5, dtype=torch.int64)
    factors[1, column] = value
    with pytest.raises(IndexError, match=rf"factor {name} has an index from 0 to \d+, but \[0, {value}\]"):
        sprites.images_of(factors)


def test_other_errors_of_indexing(sprites: DSprites) -> None:
    with pytest.raises(IndexError, match="dSprites has the images 0 to 737279"):
        sprites[737_280]
    with pytest.raises(ValueError, match="its last dimension must be the 5"):
        sprites.images_of(torch.zeros(2, 6, dtype=torch.int64))


def test_batches_are_a_function_of_the_seed_and_go_on(sprites: DSprites, sprites_root: Path) -> None:
    """One epoch after the other, or the second from the state after the first; the global generator is left alone."""

    def make(seed: int) -> DSpritesDataModule:
        datamodule = DSpritesDataModule(sprites_root, batch_size=8, batches_per_epoch=3, seed=seed)
        datamodule.data = sprites
        return datamodule

    def factors(datamodule: DSpritesDataModule) -> torch.Tensor:
        state = torch.get_rng_state()
        batches = list(datamodule.train_dataloader())
        assert torch.equal(torch.get_rng_state(), state)
        assert [tuple(batch.image.shape) for batch in batches] == [(8, 1, 64, 64)] * 3
        return torch.stack([batch.factors for batch in batches])

    whole, resumed = make(0), make(0)
    first = factors(whole)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(factors(resumed), factors(whole))
    assert torch.equal(factors(make(0)), first)
    assert len(torch.cat([first, factors(whole), factors(make(1)), factors(make(4))]).flatten(1).unique(dim=0)) == 12


def test_test_batches_are_the_same_for_every_seed(sprites: DSprites) -> None:
    def one(seed: int) -> torch.Tensor:
        datamodule = DSpritesDataModule(batch_size=8, test_batches=1, seed=seed)
        datamodule.data = sprites
        return next(iter(datamodule.test_dataloader())).factors

    assert torch.equal(one(0), one(1))


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 1), ("batches_per_epoch", 0), ("test_batches", 0), ("seed", -1)]
)
def test_numbers_too_small(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        DSpritesDataModule(**{name: value})

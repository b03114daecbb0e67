"""Test images with their maps, the same for every model."""

import numpy as np
from support import make_batches
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_vae_attention.benchmark.cell import EXAMPLES, choose_examples, take_examples


def test_examples_show_every_kind_of_defect_and_a_good_one() -> None:
    paths = [f"test/{kind}/{index}.png" for kind in ("crack", "good", "hole") for index in range(4)]
    labels = [kind != "good" for kind in ("crack", "good", "hole") for _ in range(4)]
    chosen = [paths[index] for index in choose_examples(paths, labels)]
    assert chosen == ["test/crack/0.png", "test/hole/0.png", "test/crack/1.png", "test/hole/1.png", "test/good/0.png"]
    assert len(chosen) == EXAMPLES
    assert choose_examples(["test/good/0.png"], [False]) == [0]


def test_examples_hold_images_masks_and_maps() -> None:
    shown = take_examples(make_batches(1.0, 0.0), Compose([Resize(16), Normalize([0.5] * 3, [0.5] * 3)]))
    count = len(shown["path"])
    assert shown["image"].shape == (count, 16, 16, 3)
    # A normalised 0 is the mean.
    assert (shown["image"] == 128).all()
    assert shown["mask"].shape == shown["map"].shape == (count, 16, 16)
    assert np.array_equal(shown["mask"].any(axis=(1, 2)), [True] * (count - 1) + [False])
    assert shown["score"].shape == (count,)
    assert shown["range"][0] < shown["range"][1]

"""Test images with their maps, the same for every model."""

import numpy as np
import torch
from anomalib.data import ImageBatch
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_vae_attention.benchmark.examples import EXAMPLES, choose_examples, take_examples


def make_batches(factor: float, offset: float) -> list[ImageBatch]:
    """Make two batches of random predictions that tend towards the truth, scaled and shifted."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(2):
        mask = torch.zeros(4, 16, 16, dtype=torch.bool)
        mask[:2, 4:9, 4:9] = True
        maps = torch.rand(4, 1, 16, 16, generator=generator) + 0.5 * mask[:, None]
        kinds = ["crack", "hole", "good", "good"]
        batches.append(
            ImageBatch(
                image=torch.zeros(4, 3, 16, 16),
                gt_label=mask.flatten(1).any(1),
                gt_mask=mask,
                # As PaDiM has it, with an axis too many.
                pred_score=(offset + factor * maps.amax(dim=(-2, -1))),
                anomaly_map=offset + factor * maps,
                image_path=[f"/data/test/{kind}/{number}{index}.png" for index, kind in enumerate(kinds)],
            )
        )
    return batches


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

"""Scores by anomalib's metrics, whatever the scores' range."""

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch

from anomalib_vae_attention.benchmark.evaluation import EXAMPLES, choose_examples, examples, score, to_unit_range


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


def test_scores_do_not_depend_on_the_range() -> None:
    plain, distances = score(make_batches(0.5, 0.0)), score(make_batches(400.0, 100.0))
    assert plain == pytest.approx(distances)
    assert 0.5 < plain["pixel_AUROC"] < 1
    assert 0 < plain["pixel_AUPRO"] < 1
    assert all(0 <= value <= 1 for value in plain.values())


def test_unit_range_keeps_order_and_takes_copies() -> None:
    values = [torch.tensor([100.0, 100.00001, 300.0]), torch.tensor([-5.0])]
    scaled = torch.cat(to_unit_range(values))
    assert scaled.tolist() == [*sorted(scaled.tolist()[:3]), 0.0]
    assert scaled.unique().numel() == torch.cat(values).unique().numel()
    assert to_unit_range([torch.full((2,), 7.0)])[0].tolist() == [0, 0]


def test_examples_show_every_kind_of_defect_and_a_good_one() -> None:
    paths = [f"test/{kind}/{index}.png" for kind in ("crack", "good", "hole") for index in range(4)]
    labels = [kind != "good" for kind in ("crack", "good", "hole") for _ in range(4)]
    chosen = [paths[index] for index in choose_examples(paths, labels)]
    assert chosen == ["test/crack/0.png", "test/hole/0.png", "test/crack/1.png", "test/hole/1.png", "test/good/0.png"]
    assert len(chosen) == EXAMPLES
    assert choose_examples(["test/good/0.png"], [False]) == [0]


def test_examples_hold_images_masks_and_maps() -> None:
    shown = examples(make_batches(1.0, 0.0), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    count = len(shown["path"])
    assert shown["image"].shape == (count, 16, 16, 3)
    # A normalised 0 is the mean.
    assert (shown["image"] == 128).all()
    assert shown["mask"].shape == shown["map"].shape == (count, 16, 16)
    assert np.array_equal(shown["mask"].any(axis=(1, 2)), [True] * (count - 1) + [False])
    assert shown["score"].shape == (count,)
    assert shown["range"][0] < shown["range"][1]

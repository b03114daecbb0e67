"""Scores by anomalib's metrics, whatever the scores' range."""

import pytest
import torch
from support import make_batches
from torchmetrics.functional.classification import binary_auroc

from anomalib_vae_attention.common.measures import MAIN, MEASURES
from anomalib_vae_attention.explain.scores import score, to_unit_range


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


def test_measures_are_those_that_are_named() -> None:
    batches = make_batches(1.0, 0.0)
    found = score(batches)
    assert list(found) == sorted(MEASURES, key=lambda name: (name.split("_")[0], list(MEASURES).index(name)))
    truth = torch.cat([batch.gt_mask.flatten() for batch in batches]).int()
    maps = torch.cat([batch.anomaly_map.flatten() for batch in batches])
    assert found["pixel_AUROC"] == pytest.approx(float(binary_auroc(maps, truth)), abs=1e-4)
    assert set(score(batches, MAIN)) == set(MAIN)
    without = [batch.update(in_place=False, gt_mask=torch.zeros_like(batch.gt_mask)) for batch in batches]
    assert all(name.startswith("image") for name in score(without))

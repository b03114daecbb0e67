"""Thresholds where there are no masks, and what a validation says that sets none."""

import logging
from pathlib import Path

import pytest
import torch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import seed_everything
from support import Fitted, folder, make_engine, scores, small_model, write_images

from anomalib_vae_attention import EmbeddedAD, NormalQuantile, VaeAttention
from anomalib_vae_attention.thresholds.restored import PIXEL_RATE


def test_pixel_thresholds_without_masks(tmp_path: Path) -> None:
    """They part the pixels of normal images by a rate; anomalib's own are the image threshold."""
    write_images(tmp_path / "data", good=6, bad=2)
    datamodule = folder(tmp_path / "data", normal_test_dir="good", val_split_mode="same_as_test")
    model, theirs = small_model(), small_model(post_processor=PostProcessor())
    for name, one in (("ours", model), ("theirs", theirs)):
        seed_everything(0)
        make_engine(tmp_path / name).fit(model=one, datamodule=datamodule)
    assert theirs.post_processor.pixel_threshold == theirs.post_processor.image_threshold
    assert model.post_processor.image_threshold == theirs.post_processor.image_threshold
    _, maps = scores(model, datamodule)
    normal = maps[torch.tensor([not label for label in datamodule.test_data.samples.label_index])]
    # Six images: the next one may be the worst, so that less than the rate is above.
    share = (normal > model.post_processor.pixel_threshold).float().mean()
    assert share <= PIXEL_RATE
    assert model.post_processor.pixel_threshold <= normal.max() + 1e-4


def test_masks_are_taken_where_there_are_some(fitted_small: Fitted, small_data: EmbeddedAD, tmp_path: Path) -> None:
    """With masks the thresholds are anomalib's own."""
    theirs = VaeAttention.load_from_checkpoint(fitted_small.checkpoint, post_processor=PostProcessor())
    make_engine(tmp_path).validate(model=theirs, datamodule=small_data)
    ours = fitted_small.model.post_processor
    for name in ("image_threshold", "pixel_threshold", "image_min", "pixel_max"):
        torch.testing.assert_close(getattr(theirs.post_processor, name), getattr(ours, name))


def test_a_validation_that_sets_nothing_says_so(
    small_data: EmbeddedAD, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Thresholds of held-out images stay; a fit, whose own validation leaves them alone, too, says nothing."""
    model, engine = small_model(post_processor=NormalQuantile(0.4, held_out=0.4)), make_engine(tmp_path / "fit")
    engine.fit(model=model, datamodule=small_data)
    assert "Thresholds stay as they were" not in caplog.text
    before = model.post_processor.image_threshold.clone()
    with caplog.at_level(logging.WARNING):
        make_engine(tmp_path / "validate").validate(model=model, datamodule=small_data)
    assert "Thresholds stay as they were" in caplog.text
    assert torch.equal(model.post_processor.image_threshold, before)

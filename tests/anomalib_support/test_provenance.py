"""Checkpoints say which versions and which training images made them."""

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from support import Fitted, folder, small_model, write_images

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.anomalib_support.provenance import PROVENANCE_KEY, describe_training_set
from anomalib_vae_attention.common.machine import versions


def test_a_training_set_is_told_by_names_and_sizes(tmp_path: Path) -> None:
    """The hash is that of the sorted names and sizes of the training images, wherever they lie."""
    for place in ("here", "there"):
        write_images(tmp_path / place, good=3)
    data = [folder(tmp_path / place, val_split_mode="none") for place in ("here", "there")]
    for one in data:
        one.setup()
    told = describe_training_set(data[0].train_data)
    files = sorted((tmp_path / "here" / "good").iterdir())
    listed = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
    assert told == {"images": 3, "sha256": hashlib.sha256(listed.encode()).hexdigest()}
    assert told == describe_training_set(data[1].train_data)
    (tmp_path / "there" / "good" / "0.png").write_bytes(b"other")
    assert describe_training_set(data[1].train_data)["sha256"] != told["sha256"]
    assert describe_training_set([1, 2]) == {"images": 2, "sha256": None}


def test_checkpoints_say_what_made_them(fitted_small: Fitted, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Versions and images are restored; a newer version is warned of by name, an older or none is not."""
    checkpoint = torch.load(fitted_small.checkpoint, weights_only=True)
    told = checkpoint[PROVENANCE_KEY]
    assert told["versions"] == versions(["anomalib_vae_attention", "anomalib", "timm", "torch"])
    assert told["training_set"]["images"] == 8
    assert VaeAttention.load_from_checkpoint(fitted_small.checkpoint).provenance == told
    file = tmp_path / "model.ckpt"
    for version, warned in (("99.1", True), ("0.0.1", False), ("not installed", False), (None, False)):
        told["versions"]["anomalib_vae_attention"] = version
        torch.save(checkpoint, file)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            VaeAttention.load_from_checkpoint(file)
        assert ("was made by anomalib_vae_attention 99.1, which is newer" in caplog.text) is warned
    del checkpoint[PROVENANCE_KEY]
    torch.save(checkpoint, file)
    assert VaeAttention.load_from_checkpoint(file).provenance == {}
    assert "training_set" not in getattr(small_model(pre_trained=False), "provenance", {})

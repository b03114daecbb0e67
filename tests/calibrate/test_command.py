"""Thresholds from a folder of good images."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from anomalib_vae_attention.calibrate.command import collect
from anomalib_vae_attention.thresholds.normal_quantile import NormalQuantile


def test_images_are_read_as_predictions_read_them(tmp_path: Path) -> None:
    """In any folder, and turned as their EXIF data say; a folder without images is named."""
    folder, seen = tmp_path / "für gut befunden", []
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("L", (40, 20)).save(folder / "turned.jpg", exif=turned)

    def run(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(tuple(image.shape))
        return torch.tensor([0.5]), image[:, :1]

    thresholds = NormalQuantile(0.5)
    collect(thresholds, folder, run)
    assert seen == [(1, 3, 40, 20)]
    assert float(thresholds.image_threshold) == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(FileNotFoundError, match="nothing: there is no image there"):
        collect(thresholds, tmp_path / "nothing", run)

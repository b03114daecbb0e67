"""Thresholds from a folder of good images."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from anomalib_vae_attention import cli
from anomalib_vae_attention.calibrate.command import collect
from anomalib_vae_attention.thresholds.normal_quantile import NormalQuantile


def test_images_are_read_as_predictions_read_them(tmp_path: Path) -> None:
    """In any folder, turned as their EXIF data say, and without results; a folder without images is named."""
    folder, seen = tmp_path / "für gut befunden", []
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("L", (40, 20)).save(folder / "turned.jpg", exif=turned)
    (folder / "predictions" / "pictures").mkdir(parents=True)
    (folder / "predictions" / "predictions.csv").touch()
    Image.new("L", (9, 9)).save(folder / "predictions" / "pictures" / "turned.jpg")

    def run(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(tuple(image.shape))
        return torch.tensor([0.5]), image[:, :1]

    thresholds = NormalQuantile(0.5)
    collect(thresholds, folder, run)
    assert seen == [(1, 3, 40, 20)]
    assert float(thresholds.image_threshold) == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nothing"):
        collect(thresholds, tmp_path / "nothing", run)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"There is no image below .*nothing"):
        collect(thresholds, tmp_path / "nothing", run)


@pytest.mark.parametrize("output", [".", "model.onnx"])
def test_where_a_checkpoint_cannot_go(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To a folder, or under the ending of an export."""
    (tmp_path / "model.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["calibrate", "model.ckpt", "--false_positive_rate", "0.2", "--output", output]) == 2
    assert f"--output {output} must be a file that ends in .ckpt" in capsys.readouterr().err

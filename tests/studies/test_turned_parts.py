"""Turned copies of a category keep each defect under its mask."""

from pathlib import Path

import numpy as np
import turned_parts
from PIL import Image

from anomalib_vae_attention.benchmark.data import category_datamodule


def test_masks_are_turned_with_their_images(tmp_path: Path) -> None:
    """A red square on grey, with a mask of it, is red under its turned mask and grey elsewhere; each has its angle."""
    image, mask = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64), np.uint8)
    image[10:20, 24:34], mask[10:20, 24:34] = (255, 0, 0), 255
    for place in ("train/good/0.png", "test/good/0.png", "test/spot/0.png", "test/spot/1.png"):
        file = tmp_path / "part" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    for name in ("0_mask.png", "1_mask.png"):
        file = tmp_path / "part" / "ground_truth" / "spot" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(file)
    turned_parts.main([str(tmp_path / "part"), str(tmp_path / "turned")])
    data = category_datamodule(tmp_path / "turned")
    data.setup()
    assert len(data.test_data) == 3
    masks = []
    for number in range(2):
        found = np.asarray(Image.open(tmp_path / "turned" / "test" / "spot" / f"{number}.png")).astype(int)
        masks.append(np.asarray(Image.open(tmp_path / "turned" / "ground_truth" / "spot" / f"{number}_mask.png")) > 0)
        assert abs(masks[-1].sum() - 100) < 10
        # A mask takes the nearest pixel, the image a mixture: they may differ by one at the edge.
        red = found[..., 0] - found[..., 1] > 64
        assert (red != masks[-1]).sum() < 30
    assert (masks[0] != masks[1]).any()

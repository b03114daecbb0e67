"""The drawn textures are an MVTec data set, the same each time."""

from pathlib import Path

import drawn_textures
import numpy as np
import pytest
from PIL import Image

from anomalib_vae_attention.benchmark.data import category_datamodule


def test_textures_are_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark reads them; each defect is where its mask says, and nowhere else."""
    for name, count in (("TRAIN", 2), ("GOOD", 1), ("OF_EACH_KIND", 1)):
        monkeypatch.setattr(drawn_textures, name, count)
    drawn_textures.main([str(tmp_path)])
    for name in drawn_textures.TEXTURES:
        data = category_datamodule(tmp_path / name)
        data.setup()
        assert len(data.train_data) == 2
        assert len(data.test_data) == 7
        mask = np.asarray(Image.open(tmp_path / name / "ground_truth" / "hole" / "000_mask.png")) > 0
        assert 20 < mask.sum() < 500
    drawn_textures.write(tmp_path / "again", "woven")
    file = Path("woven") / "test" / "line" / "000.png"
    assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("defect", drawn_textures.DEFECTS.values())
def test_a_defect_is_where_its_mask_is(defect) -> None:
    """Far from its mask an image is as before."""
    random = np.random.default_rng(0)
    image = drawn_textures.leather(random)
    changed, mask = defect(random, image, 100.0, 120.0)
    difference = np.abs(changed - image)
    assert mask.any()
    assert difference[mask].mean() > 10 * difference[~mask].mean()

"""Categories are found by their folders; image files are those that anomalib reads."""

from pathlib import Path

import pytest
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_vae_attention.common.mvtec_layout import IMAGE_SUFFIXES, list_defects, list_images, locate_category


def test_an_image_is_what_anomalib_takes_for_one(tmp_path: Path) -> None:
    assert sorted(IMAGE_SUFFIXES) == sorted(IMG_EXTENSIONS)
    for name in ("b/1.PNG", "b/notes.txt", "a.tif", "c.png/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.relative_to(tmp_path).as_posix() for file in list_images(tmp_path)] == [
        "a.tif",
        "b/1.PNG",
        "c.png/2.jpg",
    ]


def test_a_category_is_found_and_others_are_offered(tmp_path: Path) -> None:
    washer = tmp_path / "parts" / "washer"
    for part in ("train/good", "test/good", "test/crack", "test/bent"):
        (washer / part).mkdir(parents=True)
    (washer / "test" / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"parts/washer is not .* no folder ground_truth"):
        locate_category(tmp_path, "parts/washer")
    (washer / "ground_truth").mkdir()
    assert locate_category(tmp_path, "parts/washer") == washer.resolve()
    assert list_defects(washer) == ["bent", "crack"]
    with pytest.raises(ValueError, match=r"categories: .*other.* no folder train/good. Available .*: parts/washer"):
        locate_category(tmp_path, "other")
    with pytest.raises(ValueError, match=r"data_root: there is no folder"):
        locate_category(tmp_path / "missing", "other")

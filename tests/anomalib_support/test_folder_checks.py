"""Folders that anomalib takes without a word, though they are not what was meant."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from anomalib.data import MVTecAD
from PIL import Image
from support import folder, make_engine, small_model, write_images

from anomalib_vae_attention.anomalib_support.folder_checks import check_folder, check_names
from anomalib_vae_attention.anomalib_support.unreadable_images import require_as_shown


def masks(root: Path, *names: str) -> None:
    (root / "masks").mkdir()
    for name in names:
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(root / "masks" / name)


def checked(root: Path, **options: object) -> None:
    datamodule = folder(root, **options)
    datamodule.setup()
    check_folder(datamodule)


def test_wrong_pairs_are_refused_by_name(tmp_path: Path) -> None:
    """anomalib takes 1.png with 11.png: 1 is in 11."""
    write_images(tmp_path)
    masks(tmp_path, "0.png", "1_mask.png")
    checked(tmp_path, mask_dir="masks")
    # Names that only anomalib knows go on working.
    (tmp_path / "masks" / "0.png").rename(tmp_path / "masks" / "0_hole_a.png")
    checked(tmp_path, mask_dir="masks")
    (tmp_path / "masks" / "1_mask.png").rename(tmp_path / "masks" / "11.png")
    with pytest.raises(ValueError, match=r"1 pairs do not belong.*1\.png with .*11\.png"):
        make_engine(tmp_path / "results").fit(model=small_model(), datamodule=folder(tmp_path, mask_dir="masks"))


def test_defects_within_the_good_folder_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "bad").rename(tmp_path / "good" / "bad")
    with pytest.raises(ValueError, match=r"abnormal_dir=.*lies in normal_dir"):
        checked(tmp_path, abnormal_dir="good/bad")


def test_what_has_no_effect_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "elsewhere" / "9.png")
    (tmp_path / "good" / "linked").symlink_to(tmp_path / "elsewhere")
    masks(tmp_path, "0.jpg", "1.jpg")
    Image.effect_noise((64, 64), 50).save(tmp_path / "masks" / "1.jpg")
    datamodule = folder(tmp_path, normal_split_ratio=0.4, mask_dir="masks")
    with caplog.at_level(logging.WARNING):
        # As a training and its test do.
        for _ in range(2):
            datamodule.setup()
            check_folder(datamodule)
    assert caplog.text.count("normal_split_ratio has no effect") == 1
    assert re.search(r"the mask .*1\.jpg has \d+ levels: any above 0 is defect", caplog.text)
    # Since Python 3.13 anomalib follows links.
    assert "1 images in linked folders" in caplog.text or "linked/9.png" in str(list((tmp_path / "good").glob("**/*")))


def test_misspelt_names_are_refused_before_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MVTecAD, "prepare_data", lambda _self: pytest.fail("it would be downloaded"))
    data = MVTecAD(root=tmp_path, category="botle", num_workers=0)
    with pytest.raises(ValueError, match=r"MVTecAD has no category 'botle'\. Did you mean 'bottle'\?"):
        make_engine(tmp_path / "results").train(model=small_model(), datamodule=data)
    # Own data in its layout are no slip.
    (tmp_path / "botle").mkdir()
    check_names(data)
    write_images(tmp_path)
    with pytest.raises(ValueError, match=r"mask_dir: there is no folder .*god\. Did you mean 'good'\?"):
        check_names(folder(tmp_path, mask_dir="god"))


def test_workers_fit_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalib_vae_attention.anomalib_support.folder_checks.cores", lambda: 2)
    write_images(tmp_path)
    for given, taken in ((8, 2), (1, 1), (0, 0)):
        check_names(datamodule := folder(tmp_path, num_workers=given))
        assert datamodule.num_workers == taken


@pytest.mark.parametrize("name", ["turned.jpg", "pages.tif"])
def test_images_that_anomalib_would_read_wrongly_are_refused(name: str, tmp_path: Path) -> None:
    picture, file = Image.new("RGB", (8, 8)), tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = 8
    picture.save(file, **({"exif": exif} if name == "turned.jpg" else {"save_all": True, "append_images": [picture]}))
    with pytest.raises(ValueError, match=re.escape(str(file))):
        require_as_shown([file])

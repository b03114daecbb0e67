"""What ``vae-attention train`` finds in a folder: by names of folders, and masks by the names of images."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_vae_attention.common.folders import kind_of, pair_masks
from anomalib_vae_attention.common.images import doubtful_masks
from anomalib_vae_attention.common.mvtec_layout import list_images
from anomalib_vae_attention.train.parts import describe, find_parts


def draw(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), "grey").save(root / name)


def test_a_folder_of_images_is_one_of_good_ones(tmp_path: Path) -> None:
    draw(tmp_path, "1.png", "2.png", "shift b/1.JPG")
    assert [file.name for file in find_parts(tmp_path).good] == ["1.png", "2.png", "1.JPG"]


def test_names_of_folders_in_several_spellings(tmp_path: Path) -> None:
    draw(tmp_path, "OK/1.png", "OK/2.png", "Not OK/1.png", "Ground-Truth/1_mask.png", "other/1.png")
    parts = find_parts(tmp_path)
    assert len(parts.good) == 2
    assert list(parts.pairs.masks) == parts.defective == [tmp_path / "Not OK" / "1.png"]
    assert [kind_of(name) for name in ("i.O.", "N.i.O.", "Fault free", "things")] == [None, None, "good", None]
    assert [kind_of(name) for name in ("Gut", "Ausschuss", "Masken")] == ["good", "defective", "masks"]


def test_mvtec_layout(tiny_root: Path) -> None:
    category = tiny_root / "parts" / "washer"
    parts = find_parts(category)
    assert (len(parts.good), len(parts.good_test), len(parts.defective)) == (5, 2, 4)
    # MVTec AD's own order is an oracle: sorted images and sorted masks belong together.
    assert [*parts.pairs.masks.values()] == sorted((category / "ground_truth").rglob("*.png"))
    assert find_parts(category / "train" / "good").defective == []


def test_what_lies_in_the_good_folder_but_is_something_else(tmp_path: Path) -> None:
    draw(tmp_path, "1.png", "2.png", "defective/1.png", "masks/1.png")
    parts = find_parts(tmp_path)
    assert [file.name for file in parts.good] == ["1.png", "2.png"]
    assert all(file.parent == tmp_path for file in parts.good)
    remark = "its 1 images are not learnt, as its name or an argument says"
    assert parts.remarks == [f"{tmp_path / 'defective'}: {remark}"]
    draw(tmp_path, "others/1.png")
    named = find_parts(tmp_path, defective=Path("others"))
    assert named.remarks == [f"{tmp_path / name}: {remark}" for name in ("defective", "others")]


def test_defects_and_masks_are_not_learnt_however_deep_they_lie(tmp_path: Path) -> None:
    draw(
        tmp_path, *(f"{station}/{name}" for station in "AB" for name in ("ok/1.png", "nok/2.png", "Ground Truth/2.png"))
    )
    parts = find_parts(tmp_path)
    assert parts.good == [tmp_path / "A" / "ok" / "1.png", tmp_path / "B" / "ok" / "1.png"]
    told = describe(parts)
    assert f"1 in {tmp_path / 'A' / 'ok'}" in told
    assert f"{tmp_path / 'B' / 'nok'}: its 1 images are not learnt, as its name or an argument says" in told
    assert "--good" in told


@pytest.mark.parametrize("left", ["model.ckpt", "weights/lightning/model.ckpt", "predictions.csv", "worst_first.png"])
def test_results_of_earlier_runs_are_not_learnt(left: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path, "1.png", "shift/2.png", "results/parts/test/pictures/1.png", "results/parts/3.png")
    (tmp_path / "results" / "parts" / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "results" / "parts" / left).touch()
    assert [file.name for file in find_parts(tmp_path).good] == ["1.png", "2.png"]
    written = len(list_images(tmp_path / "results" / "parts"))
    assert f"{written} images below {tmp_path} are left out" in caplog.text
    # What is named is meant.
    assert len(find_parts(tmp_path / "results" / "parts").good) == 2


def test_masks_are_paired_by_place_and_name(tmp_path: Path) -> None:
    """Not by order: 10 comes before 2, one image has no mask, one mask no image, and kinds share names."""
    draw(tmp_path, *(f"bad/{name}.png" for name in ("1", "2", "10", "hole/1", "hole/7")))
    draw(tmp_path, *(f"masks/{name}.png" for name in ("1_mask", "mask_10", "2", "hole/1_mask", "hole/8_mask")))
    pairs = pair_masks(
        list_images(tmp_path / "bad"), tmp_path / "bad", list_images(tmp_path / "masks"), tmp_path / "masks"
    )
    found = {image.relative_to(tmp_path / "bad").as_posix(): mask.name for image, mask in pairs.masks.items()}
    assert found == {"1.png": "1_mask.png", "2.png": "2.png", "10.png": "mask_10.png", "hole/1.png": "1_mask.png"}
    assert [file.name for file in pairs.missing] == ["7.png"]
    assert [file.name for file in pairs.surplus] == ["8_mask.png"]


def test_two_masks_of_one_image_are_not_guessed(tmp_path: Path) -> None:
    draw(tmp_path, "bad/1.png", "masks/1.png", "masks/1_mask.png")
    pairs = pair_masks(
        [tmp_path / "bad" / "1.png"], tmp_path / "bad", list_images(tmp_path / "masks"), tmp_path / "masks"
    )
    assert not pairs.masks
    assert len(pairs.surplus) == 2


def test_linked_folders_are_entered_once_and_hidden_files_left_out(tmp_path: Path) -> None:
    draw(tmp_path, "elsewhere/1.png", "good/2.png", "good/.thumbs/3.png", "good/.4.png")
    (tmp_path / "good" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "good" / "loop").symlink_to(tmp_path / "good")
    assert [file.name for file in list_images(tmp_path / "good")] == ["2.png", "1.png"]


def test_files_that_would_be_read_wrongly_are_left_out_by_name(tmp_path: Path) -> None:
    draw(tmp_path, "1.png", "2.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    page = Image.new("RGB", (4, 4))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    Image.fromarray(np.full((4, 4), 999, np.uint16)).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    page.save(tmp_path / "turned.jpg", exif=exif)
    parts = find_parts(tmp_path)
    assert [file.name for file in parts.good] == ["1.png", "2.png", "turned.jpg"]
    assert {file.name for file in parts.left_out} == {"broken.png", "pages.tif", "deep.png"}
    told = describe(parts)
    assert all(word in told for word in ("broken.png: ", "2 pages", "8 bits", "1 images", "EXIF", "6x4 RGB"))


def test_why_no_image_can_be_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 999, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"0 good images .*deep\.png: it has levels .* 8 bits per channel"):
        find_parts(tmp_path)


def test_masks_with_noise_or_transparency_are_warned_of(tmp_path: Path) -> None:
    noisy = np.zeros((32, 32), np.uint8)
    noisy[8:20, 8:20] = 255
    Image.fromarray(noisy).save(tmp_path / "noisy.jpg", quality=40)
    Image.fromarray(noisy).save(tmp_path / "sharp.png")
    Image.new("RGBA", (4, 4)).save(tmp_path / "clear.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "sharp.png").read_bytes()[:60])
    warned = doubtful_masks([tmp_path / name for name in ("noisy.jpg", "sharp.png", "clear.png", "cut.png")])
    assert len(warned) == 3
    assert f"the mask {tmp_path / 'cut.png'} cannot be read" in warned[2]
    assert "levels" in warned[0]
    assert "transparency" in warned[1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["odd/1.png"], "two are the least.*Folders in .*: odd"),
        (["ok/1.png", "ok/2.png", "good/1.png"], "good and ok may both be good"),
    ],
)
def test_what_cannot_be_told_is_an_error_that_says_what_to_do(files: list[str], message: str, tmp_path: Path) -> None:
    draw(tmp_path, *files)
    if files == ["odd/1.png"]:
        message = re.compile(message, re.DOTALL).pattern
    with pytest.raises(ValueError, match=message):
        find_parts(tmp_path)


def test_named_folders(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    parts = find_parts(tmp_path, good=Path("a"), defective=tmp_path / "b")
    assert (len(parts.good), len(parts.defective)) == (2, 1)
    with pytest.raises(FileNotFoundError, match="--masks m: there is no such folder"):
        find_parts(tmp_path, good=Path("a"), masks=Path("m"))

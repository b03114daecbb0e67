"""The drawn pixels: the same for ever, good images sound, defects exactly under their masks."""

import hashlib

import numpy as np
import pytest

from anomalib_vae_attention.data.canvas import SIZE, clouds, soft
from anomalib_vae_attention.data.drawing import CATEGORIES, Name, choose_drawing, draw_image, list_names

DEFECTS = [(category, kind) for category, how in CATEGORIES.items() for kind in how.defects]

# A change here means that FORMAT_VERSION has to be raised, or folders drawn earlier are taken for current ones.
HASHES = {
    ("washer", "train", "good", 0): "55de1f720ccb2b86",
    ("washer", "test", "good", 11): "890bb7be88b946aa",
    ("washer", "test", "contamination", 0): "6b5fd890115fc4bb",
    ("washer", "test", "crack", 1): "fc04f0b2ca3ddc8c",
    ("washer", "test", "missing_piece", 2): "7f1b09f81c79714f",
    ("washer", "test", "scratch", 3): "7b3f2bccdb8ae15c",
    ("fabric", "train", "good", 59): "8bb37411da0cac3a",
    ("fabric", "test", "cut", 4): "8a371ee2d642745d",
    ("fabric", "test", "hole", 5): "fc432d41719bd6cf",
    ("fabric", "test", "loose_thread", 6): "4a822c335317870d",
    ("fabric", "test", "stain", 7): "4adf28b31501f589",
}


def fingerprint(category: str, name: Name) -> str:
    """Hash the decoded pixels of an image and its mask."""
    sample = draw_image(category, name)
    return hashlib.sha256(sample.image.tobytes() + sample.mask.tobytes()).hexdigest()[:16]


def test_pixels_are_those_of_this_version_in_any_order() -> None:
    """Neither earlier drawings nor the global random state change a pixel."""
    np.random.seed(7)  # noqa: NPY002
    drawn = {key: fingerprint(key[0], Name(*key[1:])) for key in reversed(HASHES)}
    assert drawn == dict(reversed(HASHES.items()))


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_image_is_another(category: str) -> None:
    """The streams of two images never coincide, neither within a folder nor across splits."""
    names = [Name(split, "good", number) for split in ("train", "test") for number in range(4)]
    assert len({fingerprint(category, name) for name in names}) == len(names)


@pytest.mark.parametrize("category", CATEGORIES)
def test_good_images_are_plausible_pictures(category: str) -> None:
    """They are RGB of 256x256 pixels, neither flat nor clipped, and have an empty mask."""
    image, mask = draw_image(category, Name("train", "good", 3))
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8
    assert image.std() > 15
    assert np.mean((image == 0) | (image == 255)) < 0.01
    assert mask.shape == (SIZE, SIZE)
    assert not mask.any()


@pytest.mark.parametrize(("category", "kind"), DEFECTS)
@pytest.mark.parametrize("number", [0, 3, 6])
def test_mask_covers_exactly_what_the_defect_changed(
    category: str, kind: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same picture without the defect nothing differs outside the mask, and nearly all inside."""
    name = Name("test", kind, number)
    image, mask = draw_image(category, name)
    how = CATEGORIES[category]
    monkeypatch.setitem(CATEGORIES, category, how._replace(defects={kind: lambda *_: []}))
    sound = draw_image(category, name)
    change = np.abs(image.astype(int) - sound.image.astype(int)).max(axis=-1)
    assert not sound.mask.any()
    assert set(np.unique(mask)) == {0, 255}
    assert change[mask == 0].max() == 0
    assert change[mask == 255].mean() > 12
    assert np.mean(change[mask == 255] > 0) > 0.95
    assert 20 < np.count_nonzero(mask) < 0.1 * mask.size


@pytest.mark.parametrize("category", CATEGORIES)
def test_names_list_both_splits_and_each_defect(category: str) -> None:
    """60 images to train on, 12 good ones and 8 of each of four kinds of defect to test on, named as in MVTec AD."""
    names = list_names(category)
    counts = {(name.split, name.kind): 0 for name in names}
    for name in names:
        counts[name.split, name.kind] += 1
    defects = {("test", kind): 8 for kind in CATEGORIES[category].defects}
    assert len(defects) == 4
    assert counts == {("train", "good"): 60, ("test", "good"): 12, **defects}
    assert names[0].image_file == "train/good/000.png"
    assert names[0].mask_file is None
    assert names[-1].mask_file == f"ground_truth/{names[-1].kind}/007_mask.png"


def test_unknown_category_names_the_known_ones() -> None:
    """The message is enough to correct the call."""
    with pytest.raises(ValueError, match=r"category='bolt'.*available are washer, fabric"):
        choose_drawing("bolt")


@pytest.mark.parametrize("cell", [1.6, 8.0, 60.0])
def test_clouds_have_unit_spread_whatever_their_size(cell: float) -> None:
    """The strength of the noise in a picture is set by its factor alone."""
    rng = np.random.default_rng(0)
    drawn = np.stack([clouds(rng, cell) for _ in range(20)])
    assert drawn.shape[1:] == (SIZE, SIZE)
    assert drawn.std() == pytest.approx(1.0, abs=0.1)
    assert drawn[:, 0].std() == pytest.approx(drawn[:, SIZE // 2].std(), rel=0.35)


def test_soft_edges_are_anti_aliased() -> None:
    """Coverage falls from 1 to 0 across the edge."""
    assert soft(np.array([-2.0, -0.25, 0.0, 0.25, 2.0])).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]

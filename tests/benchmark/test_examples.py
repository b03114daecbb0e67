"""Test images with their maps, the same for every model."""

from pathlib import Path

import numpy as np
from PIL import Image
from support import make_batches

from anomalib_vae_attention.benchmark.cell import EXAMPLES, choose_examples, take_examples


def test_examples_show_every_kind_of_defect_and_a_good_one() -> None:
    paths = [f"test/{kind}/{index}.png" for kind in ("crack", "good", "hole") for index in range(4)]
    labels = [kind != "good" for kind in ("crack", "good", "hole") for _ in range(4)]
    chosen = [paths[index] for index in choose_examples(paths, labels)]
    assert chosen == ["test/crack/0.png", "test/hole/0.png", "test/crack/1.png", "test/hole/1.png", "test/good/0.png"]
    assert len(chosen) == EXAMPLES
    assert choose_examples(["test/good/0.png"], [False]) == [0]


def test_examples_hold_images_masks_and_maps(tmp_path: Path) -> None:
    batches = make_batches(1.0, 0.0)
    for batch in batches:
        batch.image_path = [str(tmp_path.joinpath(*Path(path).parts[-2:])) for path in batch.image_path]
        for file in map(Path, batch.image_path):
            file.parent.mkdir(exist_ok=True)
            Image.new("L", (30, 20), 128).save(file)
    shown = take_examples(batches)
    count = len(shown["path"])
    assert shown["image"].shape == (count, 16, 16, 3)
    assert (shown["image"] == 128).all()
    assert shown["mask"].shape == shown["map"].shape == (count, 16, 16)
    assert np.array_equal(shown["mask"].any(axis=(1, 2)), [True] * (count - 1) + [False])
    assert shown["score"].shape == (count,)
    assert shown["range"][0] < shown["range"][1]

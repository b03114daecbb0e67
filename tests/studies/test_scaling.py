"""Cost against number and size of images: the categories made for it, the tables, and one run."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scaling
from PIL import Image
from scaling import make_category, memory_table, size_table


def test_few_images_are_turned_and_repeated(tiny_root: Path, tmp_path: Path) -> None:
    source = tiny_root / "parts" / "washer"
    folder = make_category(source, tmp_path / "more", 12)
    files = sorted((folder / "train" / "good").iterdir())
    pixels = [np.asarray(Image.open(file)) for file in files]
    originals = [np.asarray(Image.open(file)) for file in sorted((source / "train" / "good").iterdir())]
    assert len(pixels) == 12
    assert all(np.array_equal(*pair) for pair in zip(pixels[:5], originals, strict=True))
    assert np.array_equal(pixels[5], np.rot90(originals[0]))
    assert len({image.tobytes() for image in pixels}) == 12
    names = {file.relative_to(folder) for file in folder.glob("[tg]*/*/*") if "train" not in file.parts}
    assert len(names) == len([file for file in source.glob("[tg]*/*/*") if "train" not in file.parts])
    assert make_category(source, tmp_path / "more", 12) == folder


def test_images_and_masks_are_resized(tiny_root: Path, tmp_path: Path) -> None:
    folder = make_category(tiny_root / "parts" / "washer", tmp_path / "small", 2, 48)
    sizes = {Image.open(file).size for file in folder.rglob("*.png")}
    assert sizes == {(48, 48)}
    values = {value for file in folder.glob("ground_truth/*/*.png") for value in np.unique(Image.open(file)).tolist()}
    assert values == {0, 255}


def test_what_a_further_image_takes() -> None:
    cells = pd.DataFrame({
        "model": ["b", "a", "a"],
        "train_images": [100, 300, 100],
        "fit_seconds": 1.0,
        "memory_fit_mib": [1.0, 60.0, 10.0],
        "memory_peak_mib": 500.0,
        "checkpoint_mib": [5.0, 45.0, 20.0],
        "onnx_mib": 1.0,
        "openvino_mib": 1.0,
        "error": None,
    })
    table = memory_table(cells).set_index(["model", "train_images"])
    assert table.loc[("a", 300), "fit_kib_per_image"] == pytest.approx(256)
    assert table.loc[("a", 300), "model_kib_per_image"] == pytest.approx(128)
    assert table.loc[[("a", 100), ("b", 100)], "fit_kib_per_image"].isna().all()


def test_cost_of_a_pixel() -> None:
    row = {"runtime": "eager", "model": "m", "measured": "batch 1", "q25_ms": 1.0, "q75_ms": 1.0}
    rest = {"ratio_to_backbone": 2.0, "error": None}
    latencies = pd.DataFrame([
        {**row, **rest, "category": "1000", "median_ms": 40.0},
        {**row, **rest, "category": "500", "median_ms": 10.0},
        {**row, **rest, "category": "500", "median_ms": 9.0, "measured": "batch 16"},
    ])
    table = size_table(latencies)
    assert table["image_size"].tolist() == [500, 1000]
    assert table["us_per_kilopixel"].tolist() == pytest.approx([40, 40])


def test_cells_of_memory_and_size(tiny_root: Path, tmp_path: Path) -> None:
    given = ["--category", str(tiny_root / "parts" / "washer"), "--output", str(tmp_path), "--images", "3"]
    parsed = scaling.make_parser().parse_args([*given, "--counts", "2", "4", "--sizes", "32", "64"])
    by_count, by_size = scaling.plan_scaling(parsed)
    assert [(cell.category, cell.model) for cell in by_count] == [
        (f"{count} images", model) for count in (2, 4) for model in ("vae_attention", "vae_attention:gaussian")
    ]
    assert all(cell.export and not cell.keep and cell.image_size == 256 for cell in by_count)
    assert {(cell.category, cell.image_size) for cell in by_size} == {("32", 32), ("64", 64)}
    assert sum(cell.model == "backbone" for cell in by_size) == 2
    assert all(cell.keep for cell in by_size)
    assert len(list((tmp_path / "data" / "washer-4" / "train" / "good").iterdir())) == 4
    assert Image.open(next((tmp_path / "data").glob("washer-3-32px/test/*/*.png"))).size == (32, 32)

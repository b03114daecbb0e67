"""Pictures of anomalib's predictions: in the image's shape, none over another, with a table beside them."""

import csv
from pathlib import Path

from PIL import Image
from support import Fitted, make_engine, small_model, write_images


def test_each_image_has_its_own_picture_in_its_own_shape(fitted_small: Fitted, tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "b", good=2, size=(40, 120))
    write_images(tmp_path / "c" / "b", good=2)
    for _ in range(2):
        model = small_model(visualizer=True)
        make_engine(tmp_path / "out").predict(model, data_path=tmp_path, ckpt_path=fitted_small.checkpoint)
    run = tmp_path / "out" / "VaeAttention" / "without_training"
    assert sorted(path.name for path in run.iterdir()) == ["images", "images-2"]
    with (run / "images" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # Eight images, four names in two folders each.
    assert len({row["path"] for row in rows}) == len({row["picture"] for row in rows}) == 8
    for row in rows:
        image, picture = Image.open(row["path"]), Image.open(row["picture"])
        # Image and two overlays side by side, with a border.
        assert abs(picture.width / 3 / picture.height - image.width / image.height) < 0.1 * image.width / image.height
        assert row["label"] in {"good", "defective"}
        assert 0 <= float(row["score"]) <= 1

"""The command ``vae-attention predict``: every image once, the model's own verdicts, whatever the files are called."""

import csv
import shutil
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from anomalib.deploy import ExportType
from PIL import Image
from support import make_engine
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_vae_attention import VaeAttention, cli
from anomalib_vae_attention.anomalib_support.pre_processing import SamePreProcessor
from anomalib_vae_attention.predict import run
from anomalib_vae_attention.predict.models import _seen_part, judge, load_model


class Parts(NamedTuple):
    """A folder of test images, and the checkpoint of a model that judges them."""

    folder: Path
    checkpoint: Path


@pytest.fixture
def parts(checkpoint: Path, tiny_root: Path, tmp_path: Path) -> Parts:
    """Copy three images with one name into nested folders, one of them with a name outside ASCII."""
    folder = tmp_path / "Prüfung #1"
    for kind, number in (("good", 0), ("crack", 0), ("crack", 0)):
        source = tiny_root / "parts" / "washer" / "test" / kind / f"{number:03}.png"
        place = folder / ("ok" if kind == "good" else "line 2/ng" if (folder / "ng").exists() else "ng")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place / "1.png")
    return Parts(folder, checkpoint)


def predict(*arguments: object) -> int:
    return cli.main(["predict", *map(str, arguments)])


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_verdicts_are_those_of_anomalibs_engine(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.setNumThreads(3)
    assert predict(parts.checkpoint, parts.folder, "--output", tmp_path / "out") == 0
    assert cv2.getNumThreads() == 3, "pictures are drawn without threads of OpenCV, but it has them back"
    rows = table(tmp_path / "out")
    assert sorted(rows) == ["line 2/ng/1.png", "ng/1.png", "ok/1.png"]
    engine = make_engine(tmp_path / "engine")
    for row in rows.values():
        # anomalib refuses folders outside ASCII.
        shutil.copy(row["path"], tmp_path / "plain.png")
        model = VaeAttention(visualizer=False)
        (expected,) = engine.predict(model, data_path=tmp_path / "plain.png", ckpt_path=parts.checkpoint)
        assert float(row["score"]) == pytest.approx(float(expected.pred_score), abs=2e-6)
        assert (row["label"] == "defective") is bool(expected.pred_label)
    assert rows["ok/1.png"]["truth"] == "good"
    assert rows["ng/1.png"]["truth"] == "defective"
    for name, row in rows.items():
        picture = Image.open(tmp_path / "out" / "pictures" / f"{name}.jpg")
        assert picture.size == Image.open(row["path"]).size
    printed = capsys.readouterr().out
    assert printed.startswith("3 images: ")
    assert printed.splitlines()[-1].endswith("report.html")


@pytest.mark.parametrize("kind", [ExportType.ONNX, ExportType.OPENVINO])
def test_exports_and_folders_give_the_checkpoints_verdicts(kind: ExportType, parts: Parts, tmp_path: Path) -> None:
    model = VaeAttention.load_from_checkpoint(parts.checkpoint)
    make_engine(tmp_path).export(model, kind, export_root=tmp_path / "export")
    predict(parts.checkpoint, parts.folder, "--output", tmp_path / "checkpoint")
    predict(tmp_path / "export", parts.folder, "--output", tmp_path / "exported")
    of_checkpoint, of_export = table(tmp_path / "checkpoint"), table(tmp_path / "exported")
    assert of_checkpoint.keys() == of_export.keys()
    for name, row in of_checkpoint.items():
        assert float(row["score"]) == pytest.approx(float(of_export[name]["score"]), abs=1e-5)
        assert row["label"] == of_export[name]["label"]


def test_what_cannot_be_judged_is_a_row_with_an_error(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts.folder / "cut.png").write_bytes((parts.folder / "ok" / "1.png").read_bytes()[:200])
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(parts.folder / "deep.png")
    pages = [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))]
    pages[0].save(parts.folder / "pages.tiff", save_all=True, append_images=pages[1:])
    for number in range(3):
        (parts.folder / f"none{number}.png").touch()
    assert predict(parts.checkpoint, parts.folder, "--output", tmp_path / "more") == 0
    printed = capsys.readouterr().out
    assert "6 that cannot be judged" in printed
    assert "\n  and 1 more: see the table\n" in printed
    for number in range(3):
        (parts.folder / f"none{number}.png").unlink()
    assert predict(parts.checkpoint, parts.folder, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "3 that cannot be judged" in printed
    assert "see the table" not in printed
    rows = table(tmp_path / "out")
    assert len(rows) == 6
    for name, reason in {"cut.png": "cannot be read", "deep.png": "8 bits", "pages.tiff": "2 pages"}.items():
        assert rows[name]["label"] == "error"
        assert rows[name]["score"] == ""
        assert reason in rows[name]["error"]
    assert predict(parts.checkpoint, parts.folder, "--output", tmp_path / "out", "--fail_on_defect") == 3


def test_lists_name_images_beside_them(parts: Parts, tmp_path: Path) -> None:
    """A list of lines and one in CSV, as Excel writes it, with a file twice and one that is not there."""
    (parts.folder / "list.txt").write_text("ok/1.png\n\nng/1.png\nok/1.png\n", encoding="utf-8")
    (parts.folder / "list.csv").write_text("path,line\nok/1.png,3\ngone.png,3\n", encoding="utf-8-sig")
    assert (
        predict(parts.checkpoint, parts.folder / "list.txt", parts.folder / "list.csv", "--output", tmp_path / "o") == 0
    )
    rows = table(tmp_path / "o")
    assert {name: row["label"] == "error" for name, row in rows.items()} == {
        "ok/1.png": False,
        "ng/1.png": False,
        "gone.png": True,
    }


def test_a_turned_image_is_judged_upright(parts: Parts, tmp_path: Path) -> None:
    upright = Image.open(parts.folder / "ng" / "1.png").convert("RGB").resize((90, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned"
    turned.mkdir()
    upright.rotate(90, expand=True).save(turned / "turned.png", exif=exif)
    upright.save(turned / "upright.png")
    predict(parts.checkpoint, turned, "--output", tmp_path / "out")
    rows = table(tmp_path / "out")
    assert rows["turned.png"]["score"] == rows["upright.png"]["score"]
    assert Image.open(tmp_path / "out" / "pictures" / "turned.png.jpg").size == (90, 60)


def test_an_interrupted_run_goes_on_and_judges_each_image_once(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []

    def counting(model: object, images: list[object]) -> object:
        judged.append(len(images))
        return judge(model, images)

    monkeypatch.setattr(run, "judge", counting)
    out = tmp_path / "out"
    predict(parts.checkpoint, parts.folder, "--output", out, "--batch_size", 1)
    whole = (out / "predictions.csv").read_bytes()
    # Killed while it wrote its last row.
    (out / "predictions.csv").write_bytes(whole[:-20])
    judged.clear()
    predict(parts.checkpoint, parts.folder, "--output", out)
    assert sum(judged) == 1
    assert (out / "predictions.csv").read_bytes() == whole
    # Another image under an old name is another image.
    shutil.copy(parts.folder / "ng" / "1.png", parts.folder / "ok" / "1.png")
    judged.clear()
    predict(parts.checkpoint, parts.folder, "--output", out)
    assert sum(judged) == 1
    rows = table(out)
    assert len(rows) == 3
    assert rows["ok/1.png"]["score"] == rows["ng/1.png"]["score"]


def test_folders_of_others_are_left_alone(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.ckpt"
    content = torch.load(parts.checkpoint, weights_only=True)
    torch.save({**content, "epoch": 5}, other)
    monkeypatch.chdir(tmp_path)
    assert predict(parts.checkpoint, parts.folder) == 0
    before = (tmp_path / "predictions" / "predictions.csv").read_bytes()
    assert predict(other, parts.folder, "--output", "predictions") == 2
    assert "another model" in capsys.readouterr().err
    assert predict(other, parts.folder) == 0
    assert (tmp_path / "predictions-2" / "predictions.csv").is_file()
    assert (tmp_path / "predictions" / "predictions.csv").read_bytes() == before
    assert predict(parts.checkpoint, parts.folder, "--output", parts.folder) == 2
    assert "no predictions" in capsys.readouterr().err
    assert predict(parts.checkpoint, parts.folder, "--output", parts.folder / "ok" / "1.png" / "new") == 2
    assert "1.png/new cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        ("missing.ckpt", "ok", "no file or folder missing.ckpt"),
        (".", "ok", "holds no model"),
        ("ok/1.png", "ok", "none of .ckpt, .xml, .onnx"),
        (None, "nothing/*.png", "there is no image there"),
        (None, "parts.parquet", "is read by --engine ray"),
        (None, "table.csv", "a list of images in CSV has a column `path`"),
    ],
)
def test_errors_name_what_is_wrong(
    model: str | None,
    images: str,
    message: str,
    parts: Parts,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(parts.folder)
    Path("table.csv").write_text("file\nok/1.png\n", encoding="utf-8")
    assert predict(model or parts.checkpoint, images) == 2
    assert message in capsys.readouterr().err


def test_a_device_that_there_is_not(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(parts.checkpoint, parts.folder, "--device", "gpu0", "--output", tmp_path / "out") == 2
    assert "cannot be put on the device 'gpu0'" in capsys.readouterr().err
    export = tmp_path / "model.onnx"
    export.touch()
    assert predict(export, parts.folder, "--device", "cuda") == 2
    assert "is an export, which is computed on the CPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_of_earlier_runs_are_not_judged(parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert predict(parts.checkpoint, parts.folder, "--output", parts.folder / "predictions") == 0
    assert predict(parts.checkpoint, f"{parts.folder}*", "--output", tmp_path / "out") == 0
    assert len(table(tmp_path / "out")) == 3
    assert "an earlier run wrote them" in caplog.text


def test_a_disk_that_is_full_in_the_middle(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told with the folder, and the same command goes on."""
    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(run, "write", Mock(side_effect=OSError(28, "No space left on device")))
        assert predict(parts.checkpoint, parts.folder, "--output", output) == 2
    told = f"vae-attention predict: --output {output} cannot be written (No space left on device)"
    # On a line of its own, below the progress.
    assert any(line.startswith(told) for line in capsys.readouterr().err.splitlines())
    assert predict(parts.checkpoint, parts.folder, "--output", output) == 0
    assert len(table(output)) == 3


def test_a_true_mask_that_cannot_be_read(parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told and not shown; verdicts do not depend on it."""
    mask = tmp_path / "made" / "ground_truth" / "ng" / "1_mask.png"
    for kind in ("ok", "ng"):
        shutil.copytree(parts.folder / kind, tmp_path / "made" / "test" / kind)
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"no image")
    assert predict(parts.checkpoint, tmp_path / "made", "--output", tmp_path / "out") == 0
    assert f"The true mask {mask} is not shown" in caplog.text
    assert sorted(table(tmp_path / "out")) == ["ng/1.png", "ok/1.png"], "the mask is no image of a part"
    assert not list((tmp_path / "out").rglob("*.mask.png"))


def test_the_map_of_a_cropped_image_lies_at_its_place() -> None:
    """The middle of an image, by a transform that crops, in shares of its own width and height."""
    crop = SamePreProcessor(
        Compose([Resize([64, 64], antialias=True), CenterCrop(32), Normalize([0.4] * 3, [0.2] * 3)])
    )
    assert _seen_part(crop, 128, 256) == pytest.approx((0.25, 0.25, 0.75, 0.75), abs=0.01)
    assert _seen_part(VaeAttention.configure_pre_processor((64, 64)), 128, 256) == (0, 0, 1, 1)


def test_a_model_without_thresholds_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    for name in ("_image_threshold", "_pixel_threshold"):
        content["state_dict"][f"post_processor.{name}"] = torch.tensor(float("nan"))
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="calibrate"):
        load_model(tmp_path)

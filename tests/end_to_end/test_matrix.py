"""anomalib's own standard: every choice of the model through every entry point, layout, inferencer and visualiser.

A new ``reference`` joins by its row in ``REFERENCES``; image VAEs have tests/image_vae/test_matrix.py as well.
"""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from anomalib.data import AnomalibDataModule, BTech, Folder, Kolektor, MVTecAD, Visa
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from anomalib.pipelines.tiled_ensemble import EvalTiledEnsemble, TrainTiledEnsemble
from anomalib.visualization import ImageVisualizer
from PIL import Image
from support import CHOICES, SIZE, SMALL_IMAGE_VAES, make_engine, small_image_model, small_model

from anomalib_vae_attention import VaeAttention


def write(root: Path, count: int, ending: str, mark: bool = False, masks: Path | None = None, mask: str = "") -> None:
    """Write noise; with a bright square, and a mask of it, if marked."""
    random = np.random.default_rng(0)
    for folder in filter(None, (root, masks)):
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = random.integers(0, 100, (*SIZE, 3), dtype=np.uint8)
        if mark:
            pixels[20:40, 20:40] = 255
        Image.fromarray(pixels).save(root / f"{index:03}{ending}")
        if masks:
            truth = np.zeros(SIZE, np.uint8)
            truth[20:40, 20:40] = 255
            Image.fromarray(truth).save(masks / f"{index:03}{mask}")


def mvtec_layout(root: Path, ending: str, mask: str, good: str = "good", bad: str = "bad") -> None:
    """Write a category in MVTec AD's layout."""
    write(root / "train" / good, 5, ending)
    write(root / "test" / good, 2, ending)
    write(root / "test" / bad, 3, ending, mark=True, masks=root / "ground_truth" / bad, mask=mask)


def make_folder(root: Path, **options: object) -> Folder:
    """Write and read a folder with masks."""
    mvtec_layout(root, ".png", ".png")
    parts = {"normal_dir": "train/good", "normal_test_dir": "test/good", "abnormal_dir": "test/bad"}
    return Folder(name="parts", root=root, **parts, mask_dir="ground_truth/bad", **options)


def make_mvtec(root: Path, **options: object) -> MVTecAD:
    """Write and read MVTec AD's layout."""
    mvtec_layout(root / "bottle", ".png", "_mask.png")
    return MVTecAD(root=root, category="bottle", **options)


def make_visa(root: Path, **options: object) -> Visa:
    """Write and read VisA's layout, after its split."""
    mvtec_layout(root / "visa_pytorch" / "candle", ".JPG", ".png")
    return Visa(root=root, category="candle", **options)


def make_btech(root: Path, **options: object) -> BTech:
    """Write and read BeanTech AD's layout."""
    mvtec_layout(root / "01", ".bmp", ".png", good="ok", bad="ko")
    return BTech(root=root, category="01", **options)


def make_kolektor(root: Path, **options: object) -> Kolektor:
    """Write and read the layout of Kolektor's surface defects."""
    for item in range(10):
        folder = root / f"kos{item:02}"
        write(folder, 1, ".jpg", mark=item > 7)
        (folder / "000.jpg").rename(folder / "Part0.jpg")
        truth = np.zeros(SIZE, np.uint8)
        truth[20:40, 20:40] = 255 * (item > 7)
        Image.fromarray(truth).save(folder / "Part0_label.bmp")
    return Kolektor(root=root, **options)


LAYOUTS: dict[str, Callable[..., AnomalibDataModule]] = {
    "Folder": make_folder,
    "MVTecAD": make_mvtec,
    "Visa": make_visa,
    "BTech": make_btech,
    "Kolektor": make_kolektor,
}
SMALL = {"train_batch_size": 2, "eval_batch_size": 2, "num_workers": 0}


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_entry_point(layout: str, choice: dict, tmp_path: Path) -> None:
    """fit, validate, test, predict and train find the marked squares in each of anomalib's layouts, and draw them."""
    datamodule = LAYOUTS[layout](tmp_path / "data", **SMALL)
    model, engine = small_model(visualizer=ImageVisualizer(), **choice), make_engine(tmp_path / "results")
    engine.fit(model=model, datamodule=datamodule)
    engine.validate(model=model, datamodule=datamodule, verbose=False)
    (result,) = engine.test(model=model, datamodule=datamodule, verbose=False)
    assert result["image_AUROC"] == 1
    assert result["pixel_AUROC"] > 0.8
    batches = engine.predict(model=model, datamodule=datamodule, ckpt_path=engine.best_model_path)
    truth = torch.cat([batch.gt_label for batch in batches]).bool()
    label = torch.cat([batch.pred_label for batch in batches]).flatten()
    # anomalib's threshold is the least score of a defective image, which it then does not call anomalous.
    assert not (label & ~truth).any()
    images = list((tmp_path / "results").rglob("images/**/*.*"))
    assert len(images) == len(truth)
    with Image.open(images[0]) as picture:
        assert np.asarray(picture).std() > 0


@pytest.mark.parametrize("vae", SMALL_IMAGE_VAES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_image_vaes_in_every_layout(layout: str, vae: str, tmp_path: Path) -> None:
    """Image VAEs train on each layout, and their residual finds the images with a marked square."""
    datamodule = LAYOUTS[layout](tmp_path / "data", **SMALL)
    model = small_image_model(vae, attention="reconstruction", visualizer=ImageVisualizer(), input_size=(64, 64))
    (result,) = make_engine(tmp_path / "results", max_epochs=1).train(model=model, datamodule=datamodule)
    assert result["image_AUROC"] == 1
    assert list((tmp_path / "results").rglob("images/**/*.*"))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_training_again(choice: dict, tmp_path: Path) -> None:
    """A train after a train with the same model starts afresh."""
    datamodule, model = make_folder(tmp_path / "data", **SMALL), small_model(**choice)
    results = [make_engine(tmp_path / name).train(model=model, datamodule=datamodule) for name in ("one", "two")]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)


@pytest.mark.parametrize("choice", CHOICES[1:], ids=str)
def test_exports(choice: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every choice but the default, which test_export.py is about, gives in each format what it gives in torch."""
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    monkeypatch.chdir(tmp_path)
    datamodule, engine = make_folder(tmp_path / "data", **SMALL), make_engine(tmp_path / "results")
    engine.fit(model=small_model(**choice), datamodule=datamodule)
    model = VaeAttention.load_from_checkpoint(engine.best_model_path).eval()
    sample = next(item for item in datamodule.test_data if item.gt_label)
    with torch.no_grad():
        expected = model(sample.image[None])
    onnx = model.to_onnx(tmp_path, input_size=SIZE)
    inferencers = [
        TorchInferencer(model.to_torch(tmp_path), device="cpu"),
        # OpenVINO reads ONNX as it is.
        OpenVINOInferencer(onnx, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"}),
    ]
    for inferencer in inferencers:
        result = inferencer.predict(sample.image_path)
        assert float(result.pred_score.item()) == pytest.approx(expected.pred_score.item(), abs=1e-3)
        assert np.abs(np.asarray(result.anomaly_map).squeeze() - expected.anomaly_map.squeeze().numpy()).max() < 1e-3
        assert bool(result.pred_label.item()) == bool(expected.pred_label.item())


def test_tiled_ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """anomalib's ensemble of a model a tile trains, and finds the marked squares with its merged maps.

    With default arguments: anomalib's ensemble takes init_args of no model, its own included.
    """
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "data")
    config = {
        "seed": 0,
        "accelerator": "cpu",
        "default_root_dir": str(tmp_path / "results"),
        "tiling": {"tile_size": [32, 64], "stride": [32, 64], "image_size": [64, 64]},
        "normalization_stage": "image",
        "thresholding_stage": "image",
        "data": {
            "class_path": "anomalib.data.Folder",
            "init_args": {
                "name": "parts",
                "root": str(tmp_path / "data"),
                "normal_dir": "train/good",
                "normal_test_dir": "test/good",
                "abnormal_dir": "test/bad",
                "mask_dir": "ground_truth/bad",
                "val_split_mode": "same_as_test",
                "test_split_mode": "from_dir",
                **SMALL,
            },
        },
        "SeamSmoothing": {"apply": True, "sigma": 2, "width": 0.1},
        "TrainModels": {
            "model": {"class_path": "VaeAttention"},
            "trainer": {"enable_progress_bar": False},
        },
    }
    file = tmp_path / "ensemble.yaml"
    file.write_text(yaml.safe_dump(config))
    TrainTiledEnsemble().run(Namespace(config=file))
    (run,) = (path for path in (tmp_path / "results").rglob("v*") if path.is_dir() and not path.is_symlink())
    assert len(list(run.rglob("*.ckpt"))) == 2
    EvalTiledEnsemble(run).run(Namespace(config=file))
    (table,) = run.rglob("metric_results.csv")
    names, values = (line.split(",") for line in table.read_text().splitlines()[:2])
    results = {name: float(value) for name, value in zip(names, values, strict=True) if name.endswith("AUROC")}
    assert results["image_AUROC"] == 1
    assert results["pixel_AUROC"] > 0.8

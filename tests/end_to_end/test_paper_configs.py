"""The configs of the paper's experiments run as they stand, on a few images each."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from support import make_engine, run_anomalib

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.image_vae.model import ImageVaeModel

CONFIGS = {file.stem: file for file in (Path(__file__).parents[2] / "configs" / "paper").glob("*.yaml")}
SETTINGS = {
    "mnist_1": ("conv", [28, 28], 32, ["conv2"]),
    "mvtec": ("resnet18", [256, 256], 32, ["layer2.1.conv1"]),
    "ucsd_ped1": ("conv", [100, 100], 32, ["conv2"]),
}


def write_noise(folder: Path, count: int, size: tuple[int, ...], suffix: str = "png", name: str = "{:03d}") -> None:
    """Write images of noise."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(count):
        pixels = random.integers(0, 255, size, np.uint8)
        Image.fromarray(pixels).save(folder / f"{name.format(index)}.{suffix}")


def write_mask(folder: Path, names: list[str], size: tuple[int, int], suffix: str) -> None:
    """Write masks with a white square in a corner."""
    folder.mkdir(parents=True)
    pixels = np.zeros(size, np.uint8)
    pixels[: size[0] // 2, : size[1] // 2] = 255
    for name in names:
        Image.fromarray(pixels).save(folder / f"{name}.{suffix}")


def write_mnist(root: Path) -> None:
    """Write thirty images of noise a split, three a digit, as IDX files."""
    root.mkdir(parents=True)
    random = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        images, digits = random.integers(0, 255, (30, 28, 28), np.uint8), np.arange(30, dtype=np.uint8) % 10
        for name, array in (("images-idx3", images), ("labels-idx1", digits)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (root / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())


def write_mvtec(root: Path) -> None:
    """Write a few images in MVTec AD's layout."""
    category = root / "bottle"
    write_noise(category / "train" / "good", 4, (64, 64))
    write_noise(category / "test" / "good", 2, (64, 64))
    write_noise(category / "test" / "broken_large", 2, (64, 64))
    write_mask(category / "ground_truth" / "broken_large", ["000_mask", "001_mask"], (64, 64), "png")


def write_ucsd(root: Path) -> None:
    """Write short videos in UCSD's layout."""
    for split, video in (("Train", "Train001"), ("Test", "Test001")):
        write_noise(root / "UCSDped1" / split / video, 4, (40, 60), "tif", "{:03d}")
    write_mask(root / "UCSDped1" / "Test" / "Test001_gt", [f"{index:03d}" for index in range(4)], (40, 60), "bmp")
    gt = root / "UCSDped1" / "Test" / "Test001_gt"
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(gt / "000.bmp")


def test_every_experiment_has_its_settings() -> None:
    """The networks are those of the paper, as far as they are known, and every layer named exists."""
    assert set(CONFIGS) == set(SETTINGS)
    for name, file in CONFIGS.items():
        shown = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["init_args"]
        assert (shown["vae"], shown["input_size"], shown["latent_dim"], shown["attention_layers"]) == SETTINGS[name]
        keys = ("vae", "attention", "attention_layers", "latent_dim", "input_size", "widths", "hidden_dim", "channels")
        ImageVaeModel(**{key: shown[key] for key in keys if key in shown})


@pytest.mark.parametrize("name", SETTINGS)
def test_a_config_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    """Train, validate and test, for an epoch on a few images."""
    if name == "ucsd_ped1":
        pytest.importorskip("av", reason="anomalib reads videos with av")
    write = {"mvtec": write_mvtec, "ucsd_ped1": write_ucsd}.get(name, write_mnist)
    folder = {"mvtec": "MVTecAD", "ucsd_ped1": "ucsd"}.get(name, "MNIST")
    write(tmp_path / "datasets" / folder)
    overrides = ["--trainer.max_epochs", "1", "--data.init_args.num_workers", "0"]
    overrides += ["--model.init_args.latent_dim", "4"]
    overrides += {"mvtec": ["--model.init_args.input_size", "[64,64]"]}.get(name, [])
    output = run_anomalib(tmp_path, "train", "--config", CONFIGS[name], *overrides)
    assert "image_AUROC" in output
    assert ("pixel_AUROC" in output) is (name in {"mvtec", "ucsd_ped1"})
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    assert {file.name for file in tmp_path.rglob("*.ckpt")} == {"model.ckpt"}
    # Under anomalib's own metrics, not those of the config.
    loaded = VaeAttention.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    assert loaded.to_torch(tmp_path / "exported").is_file()
    write_noise(tmp_path / "images", 1, (64, 64, 3))
    model = VaeAttention(**loaded.hparams, visualizer=False)
    (batch,) = make_engine(tmp_path).predict(model=model, ckpt_path=checkpoint, data_path=tmp_path / "images")
    assert batch.pred_score.isfinite().all()

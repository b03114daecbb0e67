"""Data and a fitted model that several tests share."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from support import Fitted, make_engine, small_model

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.data import drawing
from anomalib_vae_attention.dsprites.dataset import DSprites

# Several threads on small images cost more than they save, ten times as much where the processor is shared.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available() and os.environ.get("VAE_ATTENTION_ACCELERATOR") != "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="PyTorch finds no CUDA device"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Draw the same random numbers in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of real data, or skip where there is none."""
    given = os.environ.get("VAE_ATTENTION_DATA")
    root = Path(given) if given else Path(__file__).parents[1].parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"no real data in {root}: name its folder in VAE_ATTENTION_DATA")
    return root


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedAD:
    """Draw the default category of the embedded data set once."""
    datamodule = EmbeddedAD(root=tmp_path_factory.mktemp("embedded"))
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


@pytest.fixture(scope="session")
def fitted(embedded: EmbeddedAD, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Fit the default model to the embedded data set once; tests must not change it."""
    seed_everything(0)
    model = VaeAttention(visualizer=False)
    engine = make_engine(tmp_path_factory.mktemp("fitted"))
    engine.fit(model=model, datamodule=embedded)
    checkpoint = Path(engine.best_model_path)
    assert checkpoint.is_file()
    return Fitted(model.eval(), engine, checkpoint)


@pytest.fixture(scope="session")
def test_images(embedded: EmbeddedAD, fitted: Fitted) -> dict[str, torch.Tensor]:
    """Return all test images, as the model's pre-processor makes them, with masks ``(N, 256, 256)`` and labels."""
    batches = list(embedded.test_dataloader())
    image = torch.cat([batch.image for batch in batches])
    return {
        "raw": image,
        "image": fitted.model.pre_processor(image),
        "mask": torch.cat([batch.gt_mask.reshape(-1, 256, 256) for batch in batches]).bool(),
        "label": torch.cat([batch.gt_label for batch in batches]).bool(),
    }


@pytest.fixture(scope="session")
def sprites_root() -> Iterator[Path]:
    """Return a folder with dSprites drawn; 360 MiB, which pytest's own folders would keep for three runs."""
    with TemporaryDirectory(prefix="dsprites-") as folder:
        DSprites(folder)
        yield Path(folder)


@pytest.fixture(scope="session")
def sprites(sprites_root: Path) -> DSprites:
    """Return the drawn dSprites."""
    return DSprites(sprites_root)


@pytest.fixture(scope="module")
def few(fitted: Fitted) -> Iterator[None]:
    """Draw fifteen images in place of a hundred."""
    # What all tests share comes first: it must not be drawn, or fitted, while there are few.
    del fitted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "TRAIN_GOOD", 8)
        patch.setattr(drawing, "TEST_GOOD", 3)
        patch.setattr(drawing, "TEST_PER_DEFECT", 1)
        yield


@pytest.fixture(scope="module")
def small_data(few: None, tmp_path_factory: pytest.TempPathFactory) -> EmbeddedAD:  # noqa: ARG001
    """Draw a small data set, in more than one batch."""
    datamodule = EmbeddedAD(root=tmp_path_factory.mktemp("small"), train_batch_size=3, eval_batch_size=4)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


@pytest.fixture(scope="module")
def fitted_small(small_data: EmbeddedAD, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Fit a small model once; tests must not change it."""
    model, engine = small_model(), make_engine(tmp_path_factory.mktemp("small_fit"))
    engine.fit(model=model, datamodule=small_data)
    return Fitted(model.eval(), engine, Path(engine.best_model_path))


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw seven images in place of a hundred."""
    monkeypatch.setattr(drawing, "TRAIN_GOOD", 2)
    monkeypatch.setattr(drawing, "TEST_GOOD", 1)
    monkeypatch.setattr(drawing, "TEST_PER_DEFECT", 1)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a category ``parts/washer`` in MVTec AD's layout, a few small images of it."""
    drawn, root = tmp_path_factory.mktemp("drawn") / "washer", tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        for name, count in (("TRAIN_GOOD", 5), ("TEST_GOOD", 2), ("TEST_PER_DEFECT", 1)):
            patch.setattr(drawing, name, count)
        drawing.draw_category("washer", drawn)
    for file in drawn.rglob("*.png"):
        target = root / "parts" / "washer" / file.relative_to(drawn)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((96, 96), Image.Resampling.NEAREST).save(target)
    return root

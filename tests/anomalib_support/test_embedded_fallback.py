"""Runs without data: on the embedded data set, or refused."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lightning.pytorch import Callback
from support import make_engine, small_model

from anomalib_vae_attention import EmbeddedAD

if TYPE_CHECKING:
    from anomalib.engine import Engine


@pytest.mark.usefixtures("few")
def test_embedded_data_without_datamodule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, without data, the model draws its own, and its checkpoint can be tested on it."""
    monkeypatch.chdir(tmp_path)
    engine = make_engine(tmp_path / "results")
    results = engine.train(model=small_model())
    assert (tmp_path / "datasets" / "EmbeddedAD" / "washer" / "train" / "good").is_dir()
    assert results[0].keys() >= {"image_AUROC", "pixel_AUROC"}
    other = make_engine(tmp_path / "other")
    (tested,) = other.test(model=small_model(), ckpt_path=engine.best_model_path, verbose=False)
    assert tested == pytest.approx(results[0], abs=1e-6)


def test_other_data_is_not_tested_on_embedded_data(
    small_data: EmbeddedAD,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that was trained on other data refuses to be tested without data, from its checkpoint too."""
    monkeypatch.chdir(tmp_path)
    engine, model = make_engine(tmp_path / "results"), small_model()
    engine.fit(model=model, datamodule=small_data)
    loaders: dict[str, Engine] = {"trained": engine, "fresh": make_engine(tmp_path / "fresh")}
    for name, runner in loaders.items():
        with pytest.raises(ValueError, match="No data was given"):
            runner.test(model=model if name == "trained" else small_model(), ckpt_path=engine.best_model_path)
    with pytest.raises(ValueError, match="No data was given"):
        make_engine(tmp_path / "predict").predict(model=small_model(), ckpt_path=engine.best_model_path)
    assert not (tmp_path / "datasets").exists()


@pytest.mark.usefixtures("few")
def test_training_again_on_other_data(
    small_data: EmbeddedAD,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that knew the embedded data and was then trained on other data is not tested on the embedded data."""
    monkeypatch.chdir(tmp_path)
    model = small_model()
    make_engine(tmp_path / "first").fit(model=model)
    engine = make_engine(tmp_path / "second")
    engine.fit(model=model, datamodule=small_data)
    with pytest.raises(ValueError, match="No data was given"):
        make_engine(tmp_path / "third").test(model=model)


def test_no_validation_on_embedded_data(
    small_data: EmbeddedAD,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given images to train on but none to validate on, the model is fitted and not validated on drawn ones."""
    monkeypatch.chdir(tmp_path)
    validated = []

    class Watch(Callback):
        def on_validation_batch_end(self, *_args: object) -> None:
            validated.append(1)

    model = small_model()
    engine = make_engine(tmp_path / "results", callbacks=[Watch()])
    engine.fit(model=model, train_dataloaders=small_data.train_dataloader())
    assert model.model.is_fitted
    assert not validated
    assert not (tmp_path / "datasets").exists()

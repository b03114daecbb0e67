"""Settings outside the model travel with its checkpoint, or their loss is an error."""

import logging
from pathlib import Path

import pytest
import torch
from anomalib.callbacks import TilerConfigurationCallback
from anomalib.data.utils import ValSplitMode
from anomalib.metrics import AUPRO, AUROC, Evaluator
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from support import SIZE, folder, make_engine, scores, small_image_model, small_model, write_images

from anomalib_vae_attention import EmbeddedAD, NormalQuantile, VaeAttention


def tiles(size: int = 32) -> TilerConfigurationCallback:
    """Cut images into four tiles."""
    return TilerConfigurationCallback(enable=True, tile_size=size, stride=size)


def test_a_tiler_is_restored(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """A checkpoint trained with tiles has them, in a model that is loaded and in an engine that knows of none."""
    engine, model = make_engine(tmp_path, callbacks=[tiles()]), small_model()
    engine.fit(model=model, datamodule=small_data)
    file = engine.best_model_path
    expected, _ = scores(model, small_data)
    loaded = VaeAttention.load_from_checkpoint(file)
    torch.testing.assert_close(scores(loaded, small_data)[0], expected)
    fresh = small_model()
    make_engine(tmp_path).test(model=fresh, datamodule=small_data, ckpt_path=file, verbose=False)
    torch.testing.assert_close(scores(fresh, small_data)[0], expected)
    fresh.model.tiler = None
    assert (scores(fresh, small_data)[0] - expected).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"was trained with tiling .*32, 32.*but the tiler callback has .*16, 16"):
        make_engine(tmp_path, callbacks=[tiles(16)]).test(model=small_model(), datamodule=small_data, ckpt_path=file)


def test_tiles_that_were_not_trained_with(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """A tiler that the training had not is an error."""
    engine = make_engine(tmp_path)
    engine.fit(model=small_model(), datamodule=small_data)
    with pytest.raises(ValueError, match="was trained with tiling None, but"):
        make_engine(tmp_path, callbacks=[tiles()]).test(
            model=small_model(), datamodule=small_data, ckpt_path=engine.best_model_path
        )


@pytest.mark.parametrize(
    "callback",
    [EMAWeightAveraging(), WeightAveraging(), StochasticWeightAveraging(1e-3)],
    ids=lambda one: str(type(one)),
)
def test_averages_of_weights_are_refused(callback: Callback, small_data: EmbeddedAD, tmp_path: Path) -> None:
    """By the callback's name."""
    with pytest.raises(ValueError, match=f"{type(callback).__name__} averages the weights"):
        make_engine(tmp_path, callbacks=[callback]).fit(model=small_model(), datamodule=small_data)


def test_thresholds_without_a_validation_set(tmp_path: Path) -> None:
    """``val_split_mode=none`` ends well, and normal_quantile needs no validation set."""
    write_images(tmp_path / "data", good=8, bad=2)
    datamodule = folder(tmp_path / "data", normal_test_dir="good", val_split_mode=ValSplitMode.NONE)
    model, engine = small_model(post_processor=NormalQuantile(0.5)), make_engine(tmp_path)
    (result,) = engine.train(model=model, datamodule=datamodule)
    assert result["image_AUROC"] == 1
    assert 0 < model.post_processor.image_threshold < 1
    assert VaeAttention.load_from_checkpoint(engine.best_model_path).post_processor.image_threshold > 0


def test_a_fit_that_learns_nothing(small_data: EmbeddedAD, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A used engine, a complete checkpoint and several epochs each say what to do."""
    engine, model = make_engine(tmp_path / "first"), small_model()
    engine.fit(model=model, datamodule=small_data)
    with pytest.raises(ValueError, match=r"this engine has fitted 1 epochs already\. Make a new one"):
        engine.fit(model=model, datamodule=small_data)
    with pytest.raises(ValueError, match=r"model\.ckpt holds all of max_epochs=1.*Leave ckpt_path out to fit again"):
        make_engine(tmp_path / "again").fit(
            model=small_model(), datamodule=small_data, ckpt_path=engine.best_model_path
        )
    with pytest.raises(ValueError, match=r"fitted in one epoch.*not 3"):
        Trainer(default_root_dir=tmp_path, max_epochs=3, num_sanity_val_steps=0, logger=False, accelerator="cpu").fit(
            small_model(), datamodule=small_data
        )
    engine, model = make_engine(tmp_path / "image", max_epochs=2), small_image_model()
    engine.fit(model=model, datamodule=small_data)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        make_engine(tmp_path / "more", max_epochs=2).fit(
            model=small_image_model(), datamodule=small_data, ckpt_path=engine.best_model_path
        )
    assert "holds all of max_epochs=2. More epochs go on" in caplog.text


def test_another_evaluator(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """A checkpoint trained with AUPRO loads under anomalib's metrics, and one trained with these under AUPRO."""
    aupro = [AUROC(fields=["pred_score", "gt_label"]), AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_")]
    for name, theirs, ours in (
        ("more", Evaluator(test_metrics=aupro), True),
        ("less", True, Evaluator(test_metrics=aupro)),
    ):
        engine = make_engine(tmp_path / name)
        engine.fit(model=small_model(evaluator=theirs), datamodule=small_data)
        file = engine.best_model_path
        assert any("fpr_limit" in key for key in torch.load(file, weights_only=True)["state_dict"]) is (name == "more")
        (result,) = make_engine(tmp_path).test(
            model=small_model(evaluator=ours), datamodule=small_data, ckpt_path=file, verbose=False
        )
        assert ("pixel_AUPRO" in result) is (name == "less")
        loaded = VaeAttention.load_from_checkpoint(file).eval()
        assert loaded(torch.rand(1, 3, *SIZE)).pred_score.isfinite().all()


def test_metrics_of_one_kind_are_undefined(tmp_path: Path) -> None:
    """torchmetrics calls them 0, as if the model were the worst there is."""
    write_images(tmp_path)
    good = folder(tmp_path, abnormal_dir=None, val_split_mode=ValSplitMode.NONE)
    model = small_model(post_processor=NormalQuantile(0.2))
    (found,) = make_engine(tmp_path / "results").train(model=model, datamodule=good)
    assert set(found) == {"image_AUROC", "image_F1Score"}
    assert all(value != value for value in found.values())
    both = folder(tmp_path)
    (found,) = make_engine(tmp_path / "results").train(model=small_model(), datamodule=both)
    assert found["image_AUROC"] == 1


def test_the_last_line_says_where_results_are(
    small_data: EmbeddedAD, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        engine = make_engine(tmp_path)
        engine.train(model=small_model(), datamodule=small_data)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[-1] == f"Checkpoint, pictures and arguments: {engine.trainer.default_root_dir}"
    assert f"Checkpoint: {Path(engine.trainer.default_root_dir, 'weights')}" in lines

"""The anomalib model through anomalib's engine: fit, test, checkpoints, tiling, odd images, arguments."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.callbacks import TilerConfigurationCallback
from anomalib.data.utils.tiler import Tiler
from lightning.pytorch import seed_everything
from support import SIZE, Fitted, folder, make_engine, scores, small_model, write_images
from torchvision.transforms.v2 import Lambda

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.fit import feature_statistics
from anomalib_vae_attention.fit.closed_form import ClosedFormFit


def test_default_model_finds_the_defects(fitted: Fitted, embedded: EmbeddedAD) -> None:
    """After a fit through the engine, the default model tells drawn defects from good images and finds where."""
    (result,) = fitted.engine.test(model=fitted.model, datamodule=embedded, verbose=False)
    assert result["image_AUROC"] > 0.9
    assert result["pixel_AUROC"] > 0.9


def test_fitted_state_is_finite_and_small(fitted: Fitted) -> None:
    """All parameters and buffers are finite, and a cell has an exemplar of each image, and shared ones."""
    for name, tensor in fitted.model.state_dict().items():
        assert not tensor.is_floating_point() or tensor.isfinite().all(), name
    # The noise level is carried as one latent more.
    assert fitted.model.model.reference.bank.shape == (32 * 32, 96 + 2, 60)
    assert fitted.model.model.reference.common.shape == (96 + 2, 1024)
    assert fitted.model.model.is_fitted


def test_checkpoint_loads_weights_only(fitted: Fitted, test_images: dict[str, torch.Tensor]) -> None:
    """A checkpoint loads without executing code from it, and gives the very same scores, maps and labels."""
    torch.load(fitted.checkpoint, map_location="cpu", weights_only=True)
    loaded = VaeAttention.load_from_checkpoint(fitted.checkpoint).eval()
    image = test_images["raw"][::15]
    with torch.no_grad():
        ours, theirs = loaded(image), fitted.model(image)
    for name in ("pred_score", "anomaly_map", "pred_label", "pred_mask"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert loaded.hparams["latent_dim"] == 96


@pytest.mark.parametrize("reference", ["exemplars", "gaussian"])
def test_every_entry_point(reference: str, small_data: EmbeddedAD, tmp_path: Path) -> None:
    """train, validate, test and predict work, also from the checkpoint in a fresh model, for each reference."""
    engine = make_engine(tmp_path)
    model = small_model(reference=reference)
    engine.train(model=model, datamodule=small_data)
    checkpoint = engine.best_model_path
    assert Path(checkpoint).is_file()
    expected = scores(model, small_data)
    other, other_engine = small_model(reference=reference), make_engine(tmp_path / "other")
    (validated,) = other_engine.validate(model=other, datamodule=small_data, ckpt_path=checkpoint, verbose=False)
    (tested,) = other_engine.test(model=other, datamodule=small_data, ckpt_path=checkpoint, verbose=False)
    assert tested.keys() >= {"image_AUROC", "pixel_AUROC"}
    assert all(0 <= value <= 1 for value in [*tested.values(), *validated.values()])
    assert torch.equal(scores(other, small_data)[0], expected[0])
    predictions = other_engine.predict(model=other, datamodule=small_data, ckpt_path=checkpoint)
    predicted = torch.cat([batch.pred_score for batch in predictions])
    assert predicted.shape == (7,)
    # The post-processor clamps to [0, 1], so that some may be equal.
    assert (predicted[expected[0].argsort()].diff() >= 0).all()
    for batch in predictions:
        assert batch.anomaly_map.shape[-2:] == SIZE
        assert batch.anomaly_map.min() >= 0
        assert batch.anomaly_map.max() <= 1


def test_two_fits_are_the_same(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """Two fits with one seed give the same state, to the last bit."""
    states = []
    for run in ("first", "second"):
        seed_everything(7)
        model = small_model()
        make_engine(tmp_path / run).fit(model=model, datamodule=small_data)
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_cached_features_change_nothing(
    small_data: EmbeddedAD,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Features kept, read again, or kept until there are too many give the same scores and maps."""
    streamed = []
    stream = ClosedFormFit._stream

    def count(fit: ClosedFormFit, module: VaeAttention) -> Iterator[torch.Tensor]:
        streamed.append(module)
        return stream(fit, module)

    monkeypatch.setattr(ClosedFormFit, "_stream", count)

    def run(mode: bool | str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        seed_everything(0)
        model = small_model(cache_features=mode)
        make_engine(tmp_path / name).fit(model=model, datamodule=small_data)
        return scores(model, small_data)

    expected = run(mode=True, name="kept")
    results = [run("auto", "auto")]
    assert not streamed
    results.append(run(mode=False, name="read"))
    assert len(streamed) == 1
    monkeypatch.setattr(feature_statistics, "CACHE_LIMIT", 4 * 8 * 8 * 176 * 5)
    results.append(run("auto", "limited"))
    assert len(streamed) == 2
    for result in results:
        for ours, theirs in zip(result, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_metrics_are_logged(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """The ELBO's terms of the normal images are logged, and are finite."""
    engine = make_engine(tmp_path)
    engine.fit(model=small_model(), datamodule=small_data)
    terms = {name: float(engine.trainer.callback_metrics[f"train_{name}"]) for name in ("loss", "reconstruction", "kl")}
    assert np.isfinite(list(terms.values())).all()
    assert terms["loss"] == pytest.approx(terms["reconstruction"] + terms["kl"], rel=1e-5)


@pytest.mark.parametrize("reference", ["exemplars", "gaussian"])
def test_one_training_image(reference: str, tmp_path: Path) -> None:
    """A single training image gives finite scores through the engine, and foreign images score more than it."""
    write_images(tmp_path / "data", good=1)
    datamodule = folder(tmp_path / "data", normal_test_dir="good")
    engine, model = make_engine(tmp_path / "results"), small_model(reference=reference)
    engine.fit(model=model, datamodule=datamodule)
    image_scores, maps = scores(model, datamodule)
    labels = torch.cat([batch.gt_label for batch in datamodule.test_dataloader()]).bool()
    assert image_scores.isfinite().all()
    assert maps.isfinite().all()
    assert image_scores[labels].min() > image_scores[~labels].max()


def test_tiles(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """Cut into tiles by anomalib's callback, images give maps and layers of their own size, each tile in its place."""
    callback = TilerConfigurationCallback(enable=True, tile_size=64, stride=64)
    engine, model = make_engine(tmp_path, callbacks=[callback]), small_model(size=(128, 128))
    engine.fit(model=model, datamodule=small_data)
    assert isinstance(model.model.tiler, Tiler)
    image_scores, maps = scores(model, small_data)
    assert maps.shape == (7, 1, 128, 128)
    assert image_scores.isfinite().all()
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        layers = model.model.layers(image)
        for row, column in np.ndindex(2, 2):
            tile = image[:, :, row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
            for whole, part in zip(layers, model.model.backbone(tile), strict=True):
                side = whole.shape[-1] // 2
                place = whole[:, :, row * side : row * side + side, column * side : column * side + side]
                torch.testing.assert_close(place, part, rtol=1e-4, atol=1e-4)


def test_overlapping_tiles() -> None:
    """Tiles that overlap give layers of the size the whole image would have."""
    model = small_model(size=(128, 128)).model
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        expected = [layer.shape for layer in model.layers(image)]
        model.tiler = Tiler(tile_size=64, stride=32)
        assert [layer.shape for layer in model.layers(image)] == expected


@pytest.mark.parametrize(("mode", "size"), [("L", (64, 64)), ("RGBA", (64, 64)), ("RGB", (1, 1))])
def test_images_of_any_kind(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Grey images, images with transparency and images of one pixel are fitted and tested like any other."""
    write_images(tmp_path / "data", mode=mode, size=size)
    datamodule = folder(tmp_path / "data", normal_test_dir="good", val_split_mode="same_as_test")
    engine, model = make_engine(tmp_path / "results"), small_model()
    engine.fit(model=model, datamodule=datamodule)
    (result,) = engine.test(model=model, datamodule=datamodule, verbose=False)
    assert result["image_AUROC"] == 1
    image_scores, maps = scores(model, datamodule)
    assert maps.shape == (8, 1, *SIZE)
    assert image_scores.isfinite().all()


def test_an_image_that_is_not_finite_is_named(tmp_path: Path) -> None:
    """A training image that an augmentation makes infinite is an error that names its file."""
    write_images(tmp_path / "data", good=1)
    datamodule = folder(
        tmp_path / "data",
        normal_test_dir="good",
        train_augmentations=torch.nn.Threshold(2.0, float("nan")),
    )
    with pytest.raises(ValueError, match=r"0\.png"):
        make_engine(tmp_path / "results").fit(model=small_model(), datamodule=datamodule)


def test_bytes_as_floats_are_named(tmp_path: Path) -> None:
    """An image from 0 to 255, as an augmentation or a data set of one's own may make it, names its file."""
    write_images(tmp_path / "data", good=1)
    datamodule = folder(tmp_path / "data", normal_test_dir="good", train_augmentations=Lambda(lambda x: 255 * x))
    with pytest.raises(ValueError, match=r"pixels between 0 and 1.*0\.png"):
        make_engine(tmp_path / "results").fit(model=small_model(), datamodule=datamodule)


def test_what_cannot_be_judged_is_defective_whatever_the_sensitivity(fitted_small: Fitted) -> None:
    """The whole model says so in every output, though no score of 1 would be above that threshold."""
    model = VaeAttention.load_from_checkpoint(fitted_small.checkpoint).eval()
    model.post_processor.image_sensitivity = model.post_processor.pixel_sensitivity = 0.0
    image = torch.rand(2, 3, 80, 60)
    image[1, 0, 79, 59] = float("nan")
    with torch.no_grad():
        prediction = model(image)
    assert prediction.pred_label.tolist() == [False, True]
    assert prediction.pred_score[1] == 1
    assert (prediction.anomaly_map[1] == 1).all()
    assert prediction.pred_mask[1].all()
    assert not prediction.pred_mask[0].any()


def test_arguments_of_another_vae_in_a_checkpoint(fitted_small: Fitted, tmp_path: Path) -> None:
    """A checkpoint of an earlier version, which kept arguments that had no effect, loads; a new such one is refused."""
    checkpoint = torch.load(fitted_small.checkpoint, weights_only=True)
    checkpoint["hyper_parameters"] |= {"elbo_steps": 20, "learning_rate": 1e-4, "channels": 1}
    file = tmp_path / "earlier.ckpt"
    torch.save(checkpoint, file)
    loaded = VaeAttention.load_from_checkpoint(file)
    assert loaded.hparams["latent_dim"] == 32
    assert loaded.hparams["channels"] is None
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, fitted_small.model.model.state_dict()[name]), name
    with pytest.raises(ValueError, match="samples=9 belongs to vae='resnet18' or vae='conv'"):
        VaeAttention.load_from_checkpoint(file, samples=9)


def test_the_reference_says_its_size(small_data: EmbeddedAD, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A fit with more images than max_exemplars warns, keeps that many, and says how many images it saw."""
    with caplog.at_level(logging.INFO, logger="anomalib_vae_attention"):
        model = small_model(max_exemplars=5)
        make_engine(tmp_path).fit(model=model, datamodule=small_data)
    assert model.model.reference.bank.shape == (64, 32 + 2, 5)
    assert any("max_exemplars=5" in record.getMessage() for record in caplog.records)
    assert any("8 images" in record.getMessage() for record in caplog.records)

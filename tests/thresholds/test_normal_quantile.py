"""Thresholds for a target false-positive rate: the rank, the shares achieved, fits, checkpoints, exports, errors."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.cli.cli import AnomalibCLI
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.models import get_model
from anomalib.post_processing import PostProcessor
from support import Fitted, folder, make_engine, small_model, write_images

from anomalib_vae_attention import EmbeddedAD, NormalQuantile, VaeAttention
from anomalib_vae_attention.thresholds.conformal import share_above
from anomalib_vae_attention.thresholds.normal_quantile import RUNTIME_MARGIN


@pytest.fixture(scope="module")
def calibrated(small_data: EmbeddedAD, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Fit a small model with two of its eight training images held out."""
    model = small_model(post_processor=NormalQuantile(0.4, 0.35, held_out=0.3))
    engine = make_engine(tmp_path_factory.mktemp("calibrated"))
    engine.fit(model=model, datamodule=small_data)
    return Fitted(model.eval(), engine, Path(engine.best_model_path))


@pytest.mark.parametrize(
    ("count", "rate", "expected"),
    [
        (99, 0.01, 0),
        (199, 0.01, 1),
        (98, 0.01, 0),
        (19, 0.05, 0),
        (20, 0.05, 0),
        (39, 0.05, 1),
        (9, 0.5, 4),
        (1, 0.5, 0),
    ],
)
def test_rank_is_that_of_conformal_prediction(count: int, rate: float, expected: int) -> None:
    """The number of scores above is what the rank ceil((n + 1)(1 - rate)) leaves, without rounding errors."""
    assert int(count * share_above(count, rate)) == expected


@pytest.mark.parametrize(("count", "rate"), [(30, 0.1), (150, 0.02)])
def test_rates_are_kept_on_average(count: int, rate: float) -> None:
    """Over many draws the expected rate is the requested one or a little less, for images and for pixels."""
    random = torch.Generator().manual_seed(0)
    images, pixels = [], []
    for _ in range(200):
        scores = torch.rand(count + 50, generator=random)
        # Images differ from one another, so that pixels of one image are far from independent.
        maps = (scores[:, None, None] * torch.rand(count + 50, 4, 4, generator=random)).sqrt()
        post_processor = NormalQuantile(rate)
        for start in range(0, count, 16):
            some = slice(start, min(start + 16, count))
            post_processor.update(scores[some], maps[some])
        post_processor.compute()
        result = post_processor(InferenceBatch(pred_score=scores[count:], anomaly_map=maps[count:]))
        images.append(result.pred_label.float().mean())
        pixels.append(result.pred_mask.float().mean())
    error = 3 * float(torch.stack(images).std()) / 200**0.5
    assert rate - 1 / (count + 1) - error < float(torch.stack(images).mean()) < rate + error
    error = 3 * float(torch.stack(pixels).std()) / 200**0.5
    assert rate - 1 / (count + 1) - error < float(torch.stack(pixels).mean()) < rate + error


def test_pixel_threshold_is_numpys_quantile() -> None:
    """The threshold from the histogram is that from all pixels sorted, to the histogram's resolution."""
    maps = torch.rand(40, 1, 8, 8).square()
    post_processor = NormalQuantile(0.05)
    post_processor.update(maps.amax((1, 2, 3)), maps)
    post_processor.compute()
    above = int(40 * 64 * share_above(40, 0.05))
    expected = np.sort(maps.numpy().ravel())[::-1][above]
    assert expected <= float(post_processor.pixel_threshold) <= expected + 2**-16


def test_normalisation_loses_nothing() -> None:
    """Scores reported keep their order without ties or clamping, with the threshold at 0.5."""
    post_processor = NormalQuantile(0.1)
    scores = torch.linspace(0.3, 0.6, 101)
    post_processor.update(scores, scores[:, None, None])
    post_processor.compute()
    every = torch.linspace(0, 1, 1001)
    reported = post_processor(InferenceBatch(pred_score=every, anomaly_map=every[:, None, None]))
    assert (reported.pred_score.diff() > 0).all()
    assert 0 <= reported.pred_score.min() <= reported.pred_score.max() <= 1
    assert torch.equal(reported.pred_label, reported.pred_score > 0.5)
    assert torch.equal(reported.pred_label, every > post_processor.image_threshold)


def test_held_out_images_are_not_learnt_from(calibrated: Fitted, small_data: EmbeddedAD) -> None:
    """The reference has six of the eight images; the thresholds are the scores of the two others."""
    model = calibrated.model
    assert model.model.reference.bank.shape[2] == 6
    batches = list(small_data.train_dataloader())
    image = torch.cat([batch.image for batch in batches])
    with torch.no_grad():
        raw = model.model(model.pre_processor(image))
    threshold = float(model.post_processor.image_threshold)
    assert int((raw.pred_score > threshold).sum()) == 0
    held_out = raw.pred_score.topk(2).values
    assert threshold == pytest.approx(float(held_out[0]), abs=1e-5)
    assert int((raw.anomaly_map > model.post_processor.pixel_threshold).sum()) < 0.35 * raw.anomaly_map.numel()


def test_the_same_images_are_held_out_whatever_the_seed(
    calibrated: Fitted,
    small_data: EmbeddedAD,
    tmp_path: Path,
) -> None:
    """Another order and features that are read twice give the same thresholds."""
    torch.manual_seed(5)
    post_processor = NormalQuantile(0.4, 0.35, held_out=0.3)
    model = small_model(post_processor=post_processor, cache_features=False)
    make_engine(tmp_path).fit(model=model, datamodule=small_data)
    for name in ("image_threshold", "pixel_threshold"):
        expected = getattr(calibrated.model.post_processor, name)
        torch.testing.assert_close(getattr(post_processor, name), expected, rtol=0, atol=1e-5)


def test_checkpoint_brings_its_post_processor(calibrated: Fitted, small_data: EmbeddedAD, tmp_path: Path) -> None:
    """From the checkpoint alone, thresholds, rates and predictions are the same, and validation leaves them."""
    loaded = VaeAttention.load_from_checkpoint(calibrated.checkpoint).eval()
    assert isinstance(loaded.post_processor, NormalQuantile)
    assert loaded.post_processor.pixel_false_positive_rate == pytest.approx(0.35)
    image = next(iter(small_data.test_dataloader())).image
    with torch.no_grad():
        ours, theirs = loaded(image), calibrated.model(image)
    for name in ("pred_score", "anomaly_map", "pred_label", "pred_mask"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    model, engine = small_model(), make_engine(tmp_path)
    engine.validate(model=model, datamodule=small_data, ckpt_path=calibrated.checkpoint, verbose=False)
    assert torch.equal(model.post_processor.image_threshold, loaded.post_processor.image_threshold)
    predictions = engine.predict(model=model, datamodule=small_data, ckpt_path=calibrated.checkpoint)
    assert torch.equal(predictions[0].pred_label, theirs.pred_label)
    torch.testing.assert_close(predictions[0].pred_score, theirs.pred_score, rtol=0, atol=1e-5)


def test_another_post_processor_can_be_asked_for(calibrated: Fitted) -> None:
    """One that the caller gives is kept, with the checkpoint's thresholds."""
    loaded = VaeAttention.load_from_checkpoint(calibrated.checkpoint, post_processor=PostProcessor())
    assert type(loaded.post_processor) is PostProcessor
    assert torch.equal(loaded.post_processor.image_threshold, calibrated.model.post_processor.image_threshold)


def test_validation_images_set_the_thresholds(
    small_data: EmbeddedAD,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With held_out=0 all training images are learnt from; good validation images count, and a warning warns."""
    model = small_model(post_processor=NormalQuantile(0.3, held_out=0))
    engine = make_engine(tmp_path)
    engine.fit(model=model, datamodule=small_data)
    assert model.model.reference.bank.shape[2] == 8
    predictions = engine.predict(model=model, datamodule=small_data)
    label = torch.cat([batch.pred_label for batch in predictions])
    truth = torch.cat([batch.gt_label for batch in predictions]).bool()
    assert int(label[~truth].sum()) == int(3 * share_above(3, 0.3)) == 0
    assert "the thresholds are tuned on the test images" in caplog.text


def test_too_few_images_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """With fewer images than the rate takes, the greatest score is the threshold, and the log says what it takes."""
    post_processor = NormalQuantile(0.01)
    scores = torch.tensor([0.2, 0.7, 0.4])
    with caplog.at_level(logging.WARNING):
        post_processor.update(scores, scores[:, None, None])
        post_processor.compute()
    assert float(post_processor.image_threshold) == pytest.approx(0.7 + RUNTIME_MARGIN, rel=2e-7)
    assert "takes 99 normal images" in caplog.text
    assert "up to 0.250" in caplog.text


def outside() -> None:
    NormalQuantile().update(torch.tensor([2.0]), torch.zeros(1, 4, 4))


def not_a_number() -> None:
    NormalQuantile().update(torch.tensor([0.5]), torch.full((1, 4, 4), torch.nan))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NormalQuantile(0.0), "false_positive_rate must be between 0 and 1"),
        (lambda: NormalQuantile(0.1, 1.0), "pixel_false_positive_rate must be between 0 and 1"),
        (lambda: NormalQuantile(held_out=1.0), "held_out must be at least 0 and less than 1"),
        (lambda: NormalQuantile().compute(), "none were held out of the training set"),
        (lambda: NormalQuantile(held_out=0).compute(), "none are in the validation set"),
        (outside, r"scores and anomaly maps in \[0, 1\]"),
        (not_a_number, r"scores and anomaly maps in \[0, 1\]"),
    ],
)
def test_what_cannot_be_done_is_an_error(call: Callable[[], object], message: str) -> None:
    """Rates out of range, no normal images and scores that are none are errors that say so."""
    with pytest.raises(ValueError, match=message):
        call()


def test_one_training_image_cannot_be_held_out(tmp_path: Path) -> None:
    """A single training image is an error at the start of the fit."""
    write_images(tmp_path / "data", good=1)
    model = small_model(post_processor=NormalQuantile())
    with pytest.raises(ValueError, match="there must be two or more, but there are 1"):
        make_engine(tmp_path / "results").fit(model=model, datamodule=folder(tmp_path / "data", normal_test_dir="good"))


def test_loaders_of_unknown_files(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """A loader that does not know its files is an error that says what to do."""
    images = torch.utils.data.DataLoader(
        [item.image for item in small_data.train_data],
        collate_fn=lambda items: ImageBatch(image=torch.stack(items)),
    )
    with pytest.raises(ValueError, match="held_out=0"):
        make_engine(tmp_path).fit(model=small_model(post_processor=NormalQuantile()), train_dataloaders=images)


@pytest.mark.parametrize("name", ["normal_quantile", "NormalQuantile", "anomalib_vae_attention.NormalQuantile"])
def test_command_line(name: str) -> None:
    """The command line takes it by each of its names, with its arguments."""
    arguments = ["--model.post_processor", name, "--model.post_processor.false_positive_rate", "0.05"]
    cli = AnomalibCLI(["fit", "--model", "vae_attention", "--model.pre_trained", "false", *arguments], run=False)
    assert isinstance(cli.model.post_processor, NormalQuantile)
    assert cli.model.post_processor.false_positive_rate == pytest.approx(0.05)


def test_config_file(tmp_path: Path) -> None:
    """The lines that configs/folder.yaml has as a comment work."""
    lines = (Path(__file__).parents[2] / "configs" / "folder.yaml").read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip() == "# post_processor:")
    lines[start : start + 3] = [line.replace("# ", "", 1) for line in lines[start : start + 3]]
    file = tmp_path / "folder.yaml"
    file.write_text("\n".join(lines))
    cli = AnomalibCLI(["fit", "--config", str(file), "--model.init_args.pre_trained", "false"], run=False)
    assert isinstance(cli.model.post_processor, NormalQuantile)
    assert cli.model.post_processor.held_out == pytest.approx(0.2)


def test_get_model() -> None:
    """anomalib's get_model takes it as an argument."""
    model = get_model("vae_attention", post_processor=NormalQuantile(0.02), pre_trained=False)
    assert model.post_processor.pixel_false_positive_rate == pytest.approx(0.02)


def test_nothing_but_good_images(tmp_path: Path) -> None:
    """A folder of good images is all it takes, and a defect that none of them has is called one."""
    write_images(tmp_path / "data", good=24, bad=1)
    model, engine = small_model(post_processor=NormalQuantile(0.3, held_out=0.3)), make_engine(tmp_path / "results")
    engine.fit(model=model, datamodule=folder(tmp_path / "data", abnormal_dir=None, val_split_mode="none"))
    good, bad = (engine.predict(model=model, data_path=tmp_path / "data" / name) for name in ("good", "bad"))
    assert torch.cat([batch.pred_label for batch in bad]).all()
    assert torch.cat([batch.pred_label for batch in good]).float().mean() < 0.5

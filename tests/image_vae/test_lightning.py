"""The training of image VAEs through anomalib: what it learns, resuming, errors, and the command line."""

import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import CSVLogger
from support import SMALL_IMAGE_VAES, make_engine, small_image_model
from torchvision.transforms.v2 import ColorJitter

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.fit.gradient_descent import GradientFit
from anomalib_vae_attention.fit.random_state import random_states, set_random_state
from anomalib_vae_attention.image_vae.attention_maps import ATTENTIONS
from anomalib_vae_attention.image_vae.model import ImageVaeModel


def test_training_is_seeded_and_learns(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """Two fits of one seed end in the same state, with a lower loss than they began with, and log its terms."""
    states, losses = [], []
    for run in ("first", "second"):
        seed_everything(3)
        model, logger = small_image_model(), CSVLogger(tmp_path / run)
        make_engine(tmp_path / run, max_epochs=12, logger=logger).fit(model=model, datamodule=small_data)
        states.append(model.state_dict())
        (written,) = (tmp_path / run).rglob("metrics.csv")
        rows = [line.split(",") for line in written.read_text().splitlines()]
        column = rows[0].index("train_loss")
        losses.append([float(row[column]) for row in rows[1:] if row[column]])
        assert {"train_kl", "train_reconstruction"} <= set(rows[0])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.parametrize("name", SMALL_IMAGE_VAES)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    name: str, small_data: EmbeddedAD, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that goes on from a checkpoint ends in the state of one that was never stopped, to the last bit."""

    def fit(folder: str, epochs: int, seed: int, checkpoint: str | None = None) -> tuple[VaeAttention, Engine]:
        seed_everything(seed)
        model, engine = small_image_model(name), make_engine(tmp_path / folder, max_epochs=epochs)
        engine.fit(model=model, datamodule=small_data, ckpt_path=checkpoint)
        return model, engine

    whole, _ = fit("whole", 3, seed=0)
    _, stopped = fit("stopped", 2, seed=0)
    resumed, engine = fit("resumed", 3, seed=1, checkpoint=stopped.best_model_path)
    assert engine.trainer.current_epoch == 3
    checkpoint = torch.load(engine.best_model_path, weights_only=True)
    assert checkpoint["global_step"] == 9
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    assert "random state" not in caplog.text
    # Of another number of processes.
    torch.save({**checkpoint, "random_states": []}, tmp_path / "other.ckpt")
    fit("other", 4, seed=0, checkpoint=str(tmp_path / "other.ckpt"))
    assert "the random state of 0 processes, but there are 1" in caplog.text


def test_the_random_state_is_that_of_all_generators() -> None:
    """torch, NumPy and Python go on with the numbers that would have come."""

    def draw() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002 - the global one

    (state,) = random_states()
    expected = draw()
    assert draw() != expected
    set_random_state(state)
    assert draw() == expected


def test_what_is_normal_is_learnt_without_augmentation(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """The normal posteriors are those of the images as they are, after the last step, however they were trained."""
    datamodule = EmbeddedAD(
        root=small_data.root, train_batch_size=3, train_augmentations=ColorJitter(brightness=(0.1, 0.2))
    )
    model = small_image_model()
    make_engine(tmp_path, max_epochs=3, check_val_every_n_epoch=5).fit(model=model, datamodule=datamodule)
    model.eval()
    with torch.no_grad():
        images = torch.cat([batch.image for batch in small_data.train_dataloader()])
        posterior = model.model.vae.posterior(model.model.prepare_image(model.pre_processor(images)))
    assert len(images) == 8
    torch.testing.assert_close(model.model.normal_mean, posterior.mean.mean(0))


def test_another_attention_on_a_trained_model(
    small_data: EmbeddedAD, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A trained model takes any attention; that thresholds belong to another one is said."""
    engine = make_engine(tmp_path, max_epochs=1)
    engine.fit(model=small_image_model(), datamodule=small_data)
    with caplog.at_level(logging.WARNING, logger="anomalib_vae_attention"):
        for attention in list(ATTENTIONS)[1:]:
            model = small_image_model(attention=attention)
            make_engine(tmp_path / attention).test(
                model=model, datamodule=small_data, ckpt_path=engine.best_model_path, verbose=False
            )
    messages = [record.getMessage() for record in caplog.records if "attention=" in record.getMessage()]
    assert len(messages) == len(ATTENTIONS) - 1
    assert "attention='energy'" in messages[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vae": "pixel"}, r"vae must be one of \['feature', 'resnet18', 'conv'\]"),
        ({"attention_layers": ["layer9"]}, "'layer9' is no layer of the encoder, which has"),
        ({"input_size": (2, 2)}, "input_size: vae='conv' with 2 widths takes 4x4 pixels or more"),
        ({"samples": 0}, "samples must be at least 1, and a whole number, but is 0"),
        ({"kl_weight": -1.0}, "kl_weight must be a number, 0 or more, but is -1.0"),
        ({"kl_warmup_steps": -1}, "kl_warmup_steps must be 0 or more, and a whole number, but is -1"),
        ({"learning_rate": 0.0}, "learning_rate must be a number greater than 0"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_image_model(**arguments)


def test_defaults_of_each_vae() -> None:
    expected = {"resnet18": ((256, 256), "layer2.1.conv1", 3), "conv": ((28, 28), "conv2", 1)}
    for name, (size, layer, channels) in expected.items():
        model = VaeAttention(vae=name, visualizer=False)
        assert isinstance(model.model, ImageVaeModel)
        assert (model.model.input_size, model.model.attention_layers, model.model.channels) == (size, [layer], channels)
        assert model.hparams["latent_dim"] == 32
        assert model.configure_optimizers().defaults["lr"] == pytest.approx(1e-3)
        assert model.pre_processor(torch.rand(1, 3, 40, 50)).shape == (1, 3, *size)


def test_weight_of_the_divergence_rises() -> None:
    fit = GradientFit(1e-3, 2.0, 4)
    assert [fit.kl_weight_at(step) for step in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0]
    assert [GradientFit(1e-3, 2.0, 0).kl_weight_at(step) for step in (0, 5)] == [2.0, 2.0]


def test_a_residual_decoder_starts_from_the_mean_image(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """With no step worth the name, every image is decoded to the mean of the training images."""
    model = small_image_model("resnet18", learning_rate=1e-12)
    make_engine(tmp_path, max_epochs=1).fit(model=model, datamodule=small_data)
    model.eval()
    with torch.no_grad():
        images = torch.cat([batch.image for batch in small_data.train_dataloader()])
        images = model.model.prepare_image(model.pre_processor(images))
        decoded = model.model.vae.decode(model.model.vae.posterior(images).mean)
    mean = images.mean(0).clamp(0.01, 0.99)
    torch.testing.assert_close(decoded, mean.expand_as(decoded), rtol=1e-4, atol=1e-4)


def test_a_loss_that_is_no_number_ends_the_run(small_data: EmbeddedAD, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        make_engine(tmp_path, max_epochs=30).fit(model=small_image_model(learning_rate=1e6), datamodule=small_data)


def test_command_line(small_data: EmbeddedAD, tmp_path: Path) -> None:
    """anomalib train and export, as a user would type them."""
    command = Path(sys.executable).with_name("anomalib")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    model = [
        "--model",
        "vae_attention",
        "--model.vae",
        "conv",
        "--model.attention",
        "mean",
        "--model.input_size",
        "[32,32]",
    ]

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [str(command), *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    data = ["--data", "EmbeddedAD", "--data.root", small_data.root]
    shown = run("train", *model, *data, "--trainer.max_epochs", 1, "--model.visualizer", "false")
    assert "image_AUROC" in shown
    (checkpoint,) = {file.resolve() for file in tmp_path.rglob("*.ckpt")}
    run("export", *model, "--ckpt_path", checkpoint, "--export_type", "openvino", "--input_size", "[32,32]")
    assert list(tmp_path.rglob("*.xml"))

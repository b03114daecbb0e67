"""The command from end to end on a few small steps, and its errors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import TQDMProgressBar
from PIL import Image
from support import small_run

from anomalib_vae_attention import cli
from anomalib_vae_attention.dsprites import callbacks, command, lightning_cli, pictures
from anomalib_vae_attention.dsprites.attention_loss import AttentionDisentanglement
from anomalib_vae_attention.dsprites.models import FactorVAE

CONFIGS = {file.stem: file for file in (Path(__file__).parents[2] / "configs" / "dsprites").glob("*.yaml")}
for manifest in ("campaign", "shape"):
    CONFIGS.pop(manifest)

FAST_SCORES = {
    "factor_vae_score": 0.5,
    "mig": 0.25,
    "dci_disentanglement": 0.125,
    "dci_disentanglement_lasso": 0.125,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the metrics, which have tests of their own and take their time."""
    for name in ("quick_metrics", "all_metrics"):
        monkeypatch.setattr(callbacks, name, lambda *_: FAST_SCORES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(run: Path) -> list[tuple[int, float]]:
    return list(pd.read_csv(run / "scores.csv")[["step", "reconstruction"]].itertuples(index=False, name=None))


def test_fit_resume_test_and_traverse(folder: Path, sprites_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in two parts leaves the rows of one in one part, and whatever the documentation names."""
    config = ["--config", str(CONFIGS["ad_factor_vae"]), *small_run(sprites_root), "--ckpt_path", "last"]
    for run, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        where = ["--trainer.max_steps", str(steps), "--trainer.default_root_dir", run]
        assert cli.main(["dsprites", "fit", *config, *where]) == 0
    assert rows(folder / "parts") == rows(folder / "whole")
    assert [step for step, _ in rows(folder / "parts")] == [1, 2, 3, 4]
    assert [file.name for file in (folder / "parts" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert list(folder.glob("parts/lightning_logs/version_*"))
    assert cli.main(["dsprites", "test", *config, "--trainer.default_root_dir", "parts"]) == 0
    report = json.loads((folder / "parts" / "test.json").read_text())
    assert report["model"] == "AD-FactorVAE"
    assert report["step"] == 4
    assert report["reconstruction"] > 0
    assert report.items() >= FAST_SCORES.items()
    chosen = ["--config", str(CONFIGS["ad_factor_vae"]), "--output", "pictures"]
    overrides = [f"data.root={sprites_root}", "trainer.default_root_dir=parts"]
    assert command.main(["traverse", *chosen, *overrides]) == 0
    pictures = {file.name for file in (folder / "pictures").iterdir()}
    kinds = [f"{kind}_{shape}.png" for kind in ("traversal", "attention") for shape in ("square", "ellipse", "heart")]
    assert pictures == set(kinds)
    assert str(Path("pictures", "traversal_heart.png")) in capsys.readouterr().out
    with Image.open(folder / "pictures" / "attention_heart.png") as picture:
        # A frame with the numbers of latents and their values, and the pixels as they are.
        assert picture.size == (60 + 9 * 66 + 2 + 8, 8 + 10 * 66 + 2 + 50)


KILLED_RUN = """
import itertools, os, signal, sys
from anomalib_vae_attention.dsprites import callbacks, command
steps = itertools.count(1)
def measure(*_):
    if next(steps) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"factor_vae_score": 0.5}
callbacks.quick_metrics = measure
command.main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_from_its_last_epoch(folder: Path, sprites_root: Path) -> None:
    """A run that was killed within its third epoch ends as one that was not."""
    arguments = ["fit", "--config", str(CONFIGS["ad_factor_vae"]), *small_run(sprites_root), "--ckpt_path", "last"]
    arguments += ["--trainer.max_steps", "7", "--trainer.default_root_dir"]
    assert command.main([*arguments, "whole"]) == 0
    # As many threads as here: sums over parts of a batch are rounded by their number.
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, *arguments, "killed"],
        capture_output=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (checkpoint,) = (folder / "killed" / "checkpoints").iterdir()
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 4
    assert command.main([*arguments, "killed"]) == 0
    assert rows(folder / "killed") == rows(folder / "whole")
    weights = [torch.load(folder / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "killed")]
    assert weights[0]["global_step"] == 7
    for name, tensor in weights[0]["state_dict"].items():
        assert torch.equal(tensor, weights[1]["state_dict"][name]), name


def test_rows_after_the_checkpoint_are_dropped(folder: Path, sprites_root: Path) -> None:
    """A run killed between checkpoints has rows of steps that it will do again."""
    arguments = ["fit", "--config", str(CONFIGS["vae"]), *small_run(sprites_root), "--trainer.default_root_dir", "run"]
    assert command.main([*arguments, "--trainer.max_steps", "2"]) == 0
    file = folder / "run" / "scores.csv"
    before = rows(folder / "run")
    file.write_text(file.read_text() + "3" + "," * file.read_text().splitlines()[0].count(",") + "\n")
    assert command.main([*arguments, "--trainer.max_steps", "4", "--ckpt_path", "last"]) == 0
    after = rows(folder / "run")
    assert after[:2] == before
    assert [step for step, _ in after] == [1, 2, 3, 4]


def test_every_config_is_parsed_with_the_paper_s_settings(sprites_root: Path) -> None:
    assert set(CONFIGS) == {"vae", "beta_vae", "factor_vae", "ad_factor_vae", "ad_factor_vae_apart", "short"}
    for name, file in CONFIGS.items():
        cli_of_config = lightning_cli.make_cli(["--config", str(file), "--data.root", str(sprites_root)], run=False)
        model, data = cli_of_config.model, cli_of_config.datamodule
        assert model.latent_dim == 10
        assert data.batch_size == 64
        assert cli_of_config.trainer.default_root_dir.endswith(name)
        if "factor" in name:
            assert isinstance(model, FactorVAE)
            assert model.gamma == 40
            rate = 5e-4 if name.endswith("apart") else 1e-4
            assert model.learning_rate == model.discriminator_learning_rate == pytest.approx(rate)
        assert isinstance(model.attention, AttentionDisentanglement) == (name.startswith("ad_") or name == "short")
        comments = [line for line in file.read_text().splitlines() if line.startswith("#     vae-attention")]
        assert all(f"configs/dsprites/{name}.yaml" in line for line in comments)
        assert yaml.safe_load(file.read_text())["seed_everything"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--config", "CONFIG", "--data.npz", "missing.npz"], "npz='missing.npz': there is no such file"),
        (["traverse", "--config", "CONFIG", "data.root=nowhere"], "there is no such file; train first"),
    ],
)
def test_one_clear_error(arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(CONFIGS["vae"]) if part == "CONFIG" else part for part in arguments]
    assert cli.main(["dsprites", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (folder / "nowhere").exists()


@pytest.mark.parametrize("arguments", [[], ["train"]])
def test_what_is_no_subcommand(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    assert "fit|test|traverse" in capsys.readouterr().err
    assert command.main(["--help"]) == 0


def test_checkpoint_that_cannot_be_written_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "last.ckpt"
    callbacks.WholeCheckpoints().save_checkpoint({"step": 1}, place)

    def fill(self: object, checkpoint: dict, path: Path, storage_options: object = None) -> None:
        del self, checkpoint, storage_options
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(callbacks.TorchCheckpointIO, "save_checkpoint", fill)
    with pytest.raises(OSError, match="No space left"):
        callbacks.WholeCheckpoints().save_checkpoint({"step": 2}, place)
    assert torch.load(place, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_steps_between_rows() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
        callbacks.Scores(0)


def test_traversals_move_one_latent() -> None:
    """In the middle every row is the image's own reconstruction with that latent at 0."""
    model = FactorVAE(latent_dim=3).eval()
    image = torch.rand(1, 64, 64)
    traversals = pictures.latent_traversals(model, image)
    assert traversals.shape == (3, 9, 64, 64)
    latents = model(image[None]).detach()
    latents[0, 1] = -2
    torch.testing.assert_close(traversals[1, 0], model.decoder(latents).sigmoid()[0, 0].detach())
    maps = pictures.traversal_attention(model, traversals, "conv3")
    assert maps.shape == traversals.shape
    assert maps.min() >= 0
    assert maps.max() <= 1
    with pytest.raises(ValueError, match=r"--layer must be one of .*, but is 'fc'"):
        pictures.draw_pictures(model, None, Path(), "fc")


def test_rows_and_columns_are_labelled() -> None:
    images = torch.arange(27.0).div(27)[:, None, None, None].expand(-1, 3, 64, 64).unflatten(0, (3, 9))
    figure = pictures.label_rows(images)
    (axes,) = figure.axes
    shown = axes.images[0].get_array()
    assert shown[34::66, 34::66, 0].flatten().tolist() == pytest.approx((torch.arange(27) / 27).tolist())
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]
    assert [label.get_text() for label in axes.get_xticklabels()][::4] == ["-2", "0", "2"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "value of the latent (standard deviations of the prior)",
        "latent",
    )


def test_a_missing_config_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["fit"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "vae-attention dsprites fit: --config FILE is missing, such as one of configs/dsprites in the repository"
    ]


def test_progress_shows_no_number_of_a_last_epoch(sprites_root: Path, tmp_path: Path) -> None:
    """It is -2 where steps end a training; Lightning's bar for rich terminals shows it."""
    cli = lightning_cli.make_cli(
        [
            "--config",
            str(CONFIGS["ad_factor_vae"]),
            "--data.root",
            str(sprites_root),
            "--trainer.default_root_dir",
            str(tmp_path),
        ],
        run=False,
    )
    assert type(cli.trainer.progress_bar_callback) is TQDMProgressBar


def test_nothing_of_anomalib_is_imported() -> None:
    code = "import sys; import anomalib_vae_attention.dsprites.command; sys.exit('anomalib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

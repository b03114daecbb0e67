"""What a run leaves behind: scores over the steps, scores of the test, and checkpoints that are never half-written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from anomalib_vae_attention.common.argument_checks import require_whole
from anomalib_vae_attention.common.atomic_files import replacing, write_json, write_table

from .dataset import DSprites
from .metrics import Encode, all_metrics, quick_metrics

SCORES_FILE, TEST_FILE = "scores.csv", "test.json"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a killed run leaves the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write a checkpoint; an ``OSError`` leaves the previous file."""
        with replacing(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class Scores(pl.Callback):
    """Measures disentanglement during training and at the test.

    Training adds a row to ``scores.csv`` in the run's folder every so many steps: the step, the last batch's terms of
    the loss, FactorVAE score, MIG and DCI by lasso. A resumed run replaces the rows of steps that it does again. The
    test writes ``test.json``: all metrics, reconstruction and KL.

    Args:
        every_n_steps: Steps between two rows, at least 1.
        seed: Seed of the metrics' draws.

    Raises:
        ValueError: If ``every_n_steps`` is less than 1.
    """

    def __init__(self, every_n_steps: int = 5000, seed: int = 0) -> None:
        require_whole("every_n_steps", every_n_steps, least=1)
        self.every_n_steps, self.seed = every_n_steps, seed

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        """Add a row if it is time."""
        if trainer.global_step % self.every_n_steps:
            return
        terms = {
            name.removeprefix("train/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/")
        }
        scores = quick_metrics(*_measured(trainer, pl_module), self.seed)
        pl_module.log_dict({f"score/{name}": value for name, value in scores.items()})
        row = {"step": trainer.global_step, **terms, **scores}
        add_scores(Path(trainer.default_root_dir) / SCORES_FILE, row)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute all metrics, print them, and write them."""
        terms = {name: float(value) for name, value in trainer.callback_metrics.items()}
        results = {**terms, **all_metrics(*_measured(trainer, pl_module), self.seed)}
        report = {"model": describe(pl_module), "step": getattr(pl_module, "steps", 0), **results}
        file = Path(trainer.default_root_dir) / TEST_FILE
        write_json(file, report)
        for name, value in results.items():
            print(f"{name:<24} {value:8.4f}")
        print(f"Written to {file}")


def describe(model: pl.LightningModule) -> str:
    """Name a model the way the field does: AD- for attention disentanglement."""
    return ("AD-" if getattr(model, "attention", None) is not None else "") + type(model).__name__


def _measured(trainer: Any, model: pl.LightningModule) -> tuple[DSprites, Encode]:  # noqa: ANN401
    """Return the data set that a trainer uses, and the function from images to posterior means."""
    return trainer.datamodule.data, lambda images: model(images.to(model.device))


def add_scores(file: Path, row: Mapping[str, Any]) -> None:
    """Add a row to ``scores.csv``, whole or not at all, in place of those of its ``step`` and of later ones."""
    table = pd.DataFrame([row])
    if file.exists():
        # As texts, so that older rows stay as they are.
        before = pd.read_csv(file, dtype=str, keep_default_na=False)
        table = pd.concat([before[before["step"].astype(int) < row["step"]], table])
    write_table(file, table)


def load_weights(model: pl.LightningModule, checkpoint: Path) -> None:
    """Give a model the weights of a checkpoint, whose model had the same arguments.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint of such a model.
    """
    if not checkpoint.is_file():
        msg = f"--ckpt_path {checkpoint}: there is no such file; train first, or name a checkpoint"
        raise FileNotFoundError(msg)
    try:
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except (RuntimeError, KeyError) as error:
        msg = f"--ckpt_path {checkpoint} does not hold the weights of the model in --config: {error}"
        raise ValueError(msg) from error
    # A campaign on a GPU keeps the VAE's weights alone.
    wanted = [name for name in missing if not name.startswith("discriminator.")]
    if wanted or unexpected:
        msg = f"--ckpt_path {checkpoint} is of another model than --config: {', '.join([*wanted, *unexpected])}"
        raise ValueError(msg)

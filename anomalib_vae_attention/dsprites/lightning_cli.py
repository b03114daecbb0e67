"""Lightning's command line as every run on dSprites has it."""

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from .callbacks import Scores, WholeCheckpoints
from .datamodule import DSpritesDataModule
from .models import BetaVAE

logger = logging.getLogger(__name__)


LAST_CHECKPOINT = {
    "checkpoint.filename": ModelCheckpoint.CHECKPOINT_NAME_LAST,
    "checkpoint.every_n_epochs": 1,
    # With save_last=True and save_top_k=0, Lightning writes none before the end.
    "checkpoint.save_top_k": 1,
    "checkpoint.enable_version_counter": False,
}
"""The last epoch's checkpoint, in one file that each epoch replaces."""


class DSpritesCLI(LightningCLI):
    """Lightning's command line with what every run on dSprites needs: one seed, checkpoints, scores and logs."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer what makes sense for these models."""
        return {"fit": {"model", "datamodule"}, "test": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks, and derive folders and seeds from the run's."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(LAST_CHECKPOINT)
        parser.add_lightning_class_args(Scores, "scores")
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=checkpoint_folder)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=int)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Make the trainer; it logs to CSV, and to TensorBoard where that is installed, unless told otherwise."""
        config = (self.config_init[self.subcommand] if self.subcommand else self.config_init).trainer
        if config.logger is None:
            kwargs["logger"] = make_loggers(Path(config.default_root_dir))
        chosen = config.callbacks or []
        if config.enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in chosen):
            # Lightning's default shows the number of the last epoch, which is -2 where steps say when it ends.
            kwargs["callbacks"] = [*chosen, TQDMProgressBar()]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Write checkpoints whole, and say so if the run could be faster."""
        self.trainer.strategy.checkpoint_io = WholeCheckpoints()
        if self.trainer.precision == "32-true" and has_bf16_instructions():
            rank_zero_info("This processor has bfloat16 instructions: --trainer.precision bf16-mixed trains faster.")


def has_bf16_instructions() -> bool:
    """Return whether the processor multiplies bfloat16 matrices faster than single precision, as far as it tells."""
    # Older releases of PyTorch have no such function.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def checkpoint_folder(root: str | None) -> str:
    """Return the folder of a run's checkpoints."""
    return str(Path(root or ".") / "checkpoints")


def make_loggers(root: Path) -> list[Logger]:
    """Make the loggers of a run, each part of a resumed run in a folder of its own."""
    loggers: list[Logger] = [CSVLogger(root, "logs")]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(root, "logs", loggers[0].version))
    else:
        logger.info("TensorBoard is not installed (pip install tensorboard): logging to CSV only")
    return loggers


def make_cli(arguments: list[str], *, run: bool = True) -> DSpritesCLI:
    """Parse arguments, make model, data and trainer, and run the subcommand if asked to."""
    defaults: dict[str, Any] = {"accelerator": "cpu", "max_epochs": -1, "default_root_dir": "results/dsprites/run"}
    # Lightning supposes that whoever gives arguments from Python has none on the command line.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    # It is what a resumed run goes on from.
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    return DSpritesCLI(
        BetaVAE,
        DSpritesDataModule,
        subclass_mode_model=True,
        seed_everything_default=0,
        trainer_defaults=defaults,
        save_config_kwargs={"overwrite": True},
        args=arguments,
        run=run,
    )

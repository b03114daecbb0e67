"""Lightning's command line as every run on dSprites has it."""

import warnings
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from .callbacks import Scores, WholeCheckpoints
from .datamodule import DSpritesDataModule
from .models import BetaVAE

LAST_CHECKPOINT = {
    "checkpoint.filename": ModelCheckpoint.CHECKPOINT_NAME_LAST,
    "checkpoint.every_n_epochs": 1,
    # With save_last=True and save_top_k=0, Lightning writes none before the end.
    "checkpoint.save_top_k": 1,
    "checkpoint.enable_version_counter": False,
}
"""The last epoch's checkpoint, in one file that each epoch replaces."""


class DSpritesCLI(LightningCLI):
    """Lightning's command line with what every run on dSprites needs: one seed, checkpoints and scores."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer what makes sense for these models."""
        return {"fit": {"model", "datamodule"}, "test": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks, and derive folders and seeds from the run's."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(LAST_CHECKPOINT)
        parser.add_lightning_class_args(Scores, "scores")
        parser.link_arguments(
            "trainer.default_root_dir", "checkpoint.dirpath", compute_fn=lambda root: f"{root or '.'}/checkpoints"
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=int)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Make the trainer, with a progress bar that shows steps."""
        config = (self.config_init[self.subcommand] if self.subcommand else self.config_init).trainer
        chosen = config.callbacks or []
        if config.enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in chosen):
            # Lightning's default shows the number of the last epoch, which is -2 where steps say when it ends.
            kwargs["callbacks"] = [*chosen, TQDMProgressBar()]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Write checkpoints whole."""
        self.trainer.strategy.checkpoint_io = WholeCheckpoints()


def make_cli(arguments: list[str], *, run: bool = True) -> DSpritesCLI:
    """Parse arguments, make model, data and trainer, and run the subcommand if asked to."""
    defaults: dict[str, Any] = {"accelerator": "cpu", "max_epochs": -1, "default_root_dir": "results/dsprites/run"}
    # Lightning supposes that whoever gives arguments from Python has none on the command line.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    # Without TensorBoard, Lightning logs to CSV files.
    warnings.filterwarnings("ignore", "Starting from v1.9.0, `tensorboardX`")
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

"""The command ``vae-attention dsprites``: Lightning's command line on dSprites, and campaigns of many runs.

    vae-attention dsprites fit --config configs/dsprites/ad_factor_vae.yaml --ckpt_path last
    vae-attention dsprites test --config configs/dsprites/ad_factor_vae.yaml --ckpt_path last
    vae-attention dsprites traverse --config configs/dsprites/ad_factor_vae.yaml
    vae-attention dsprites campaign configs/dsprites/campaign.yaml

A run lives in ``trainer.default_root_dir``: checkpoints, ``scores.csv``, ``test.json``, Lightning's logs, pictures.
"""

import argparse
import importlib.util
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from .allocator import keep_freed_memory
from .callbacks import Scores, WholeCheckpoints, load_weights
from .datamodule import DSpritesDataModule
from .models import BetaVAE
from .plots import plot_runs
from .traversal import draw_pictures

logger = logging.getLogger(__name__)

USAGE = """usage: vae-attention dsprites fit|test|traverse --config FILE [ARGUMENTS]
       vae-attention dsprites campaign FILE... [ARGUMENTS]

  fit       train a model; --ckpt_path last resumes
  test      measure disentanglement; --ckpt_path last takes the last checkpoint
  traverse  write latent traversals, attention maps and a plot of several runs
  campaign  train several models with several seeds, on processors or side by side on a GPU

Each takes --help."""


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


def traverse(arguments: list[str]) -> None:
    """Write the pictures of a run, or the plot of several runs."""
    parser = argparse.ArgumentParser("vae-attention dsprites traverse", description=traverse.__doc__)
    parser.add_argument("--config", type=Path, help="config of the run whose latents to look at")
    parser.add_argument("--ckpt_path", type=Path, help="checkpoint; the run's last by default")
    parser.add_argument("--output", type=Path, help="folder of the PNG files; the run's by default")
    parser.add_argument("--layer", default="conv3", help="layer of the attention maps, conv1 to conv4")
    parser.add_argument("--runs", type=Path, nargs="+", help="folders of tested runs, to be plotted together")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as --KEY VALUE of fit, such as the run's folder")
    chosen = parser.parse_args(arguments)
    if chosen.config is None and not chosen.runs:
        parser.error("--config FILE or --runs FOLDER... is needed")
    files = []
    if chosen.config is not None:
        overrides = [f"--{override}" for override in chosen.overrides]
        cli = make_cli(["--config", str(chosen.config), *overrides], run=False)
        root = Path(cli.trainer.default_root_dir)
        load_weights(cli.model, chosen.ckpt_path or root / "checkpoints" / "last.ckpt")
        files += draw_pictures(cli.model.eval(), cli.datamodule.images(), chosen.output or root, chosen.layer)
    if chosen.runs:
        files.append(plot_runs(chosen.runs, chosen.output or Path()))
    for file in files:
        print(f"Written to {file}")


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        arguments: Subcommand and its arguments; those of the command line by default.

    Returns:
        Exit code: 1 after an error in the data or the training, 2 for a subcommand that does not exist.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in {"fit", "test", "traverse", "campaign"}:
        wanted_help = bool(arguments) and arguments[0] in {"-h", "--help"}
        print(USAGE, file=sys.stdout if wanted_help else sys.stderr)
        return 0 if wanted_help else 2
    keep_freed_memory()
    try:
        return run(arguments[0], arguments[1:])
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"vae-attention dsprites: {error}", file=sys.stderr)
        return 1


def run(subcommand: str, arguments: list[str]) -> int:
    """Run one of the subcommands, and return its exit code."""
    if subcommand == "campaign":
        # It imports this module.
        from . import campaign

        return campaign.main(arguments)
    if subcommand == "traverse":
        traverse(arguments)
    else:
        make_cli([subcommand, *arguments])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command ``vae-attention dsprites``: Lightning's command line on dSprites, and pictures of its runs.

    vae-attention dsprites fit --config configs/dsprites/ad_factor_vae.yaml --ckpt_path last
    vae-attention dsprites test --config configs/dsprites/ad_factor_vae.yaml --ckpt_path last
    vae-attention dsprites traverse --config configs/dsprites/ad_factor_vae.yaml

A run lives in ``trainer.default_root_dir``: checkpoints, ``scores.csv``, ``test.json``, Lightning's logs, pictures.
"""

import argparse
import sys
from pathlib import Path

from anomalib_vae_attention.common.argument_checks import take_overrides

from .callbacks import load_weights
from .lightning_cli import make_cli
from .pictures import draw_pictures

CONFIGS = "configs/dsprites in the repository"
USAGE = """usage: vae-attention dsprites fit|test|traverse --config FILE [ARGUMENTS]

  fit       train a model; --ckpt_path last resumes
  test      measure disentanglement; --ckpt_path last takes the last checkpoint
  traverse  write latent traversals and attention maps

Each takes --help."""


def traverse(arguments: list[str]) -> None:
    """Write the pictures of a run."""
    parser = argparse.ArgumentParser("vae-attention dsprites traverse", description=traverse.__doc__)
    parser.add_argument("--config", type=Path, required=True, help="config of the run whose latents to look at")
    parser.add_argument("--ckpt_path", type=Path, help="checkpoint; the run's last by default")
    parser.add_argument("--output", type=Path, help="folder of the PNG files; the run's by default")
    parser.add_argument("--layer", default="conv3", help="layer of the attention maps, conv1 to conv4")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as --KEY VALUE of fit, such as the run's folder")
    overrides, rest = take_overrides(arguments)
    chosen = parser.parse_args(rest)
    overrides += chosen.overrides
    cli = make_cli(["--config", str(chosen.config), *(f"--{one}" for one in overrides)], run=False)
    root = Path(cli.trainer.default_root_dir)
    load_weights(cli.model, chosen.ckpt_path or root / "checkpoints" / "last.ckpt")
    for file in draw_pictures(cli.model.eval(), cli.datamodule.data, chosen.output or root, chosen.layer):
        print(f"Written to {file}")


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; the exit code is 2 for one that does not exist, or that lacks its config."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in {"fit", "test", "traverse"}:
        wanted_help = bool(arguments) and arguments[0] in {"-h", "--help"}
        print(USAGE, file=sys.stdout if wanted_help else sys.stderr)
        return 0 if wanted_help else 2
    if len(arguments) == 1:
        print(
            f"vae-attention dsprites {arguments[0]}: --config FILE is missing, such as one of {CONFIGS}",
            file=sys.stderr,
        )
        return 2
    if arguments[0] == "traverse":
        traverse(arguments[1:])
    else:
        make_cli(arguments)
    return 0

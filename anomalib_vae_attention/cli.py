"""The command ``vae-attention``: what this package does beyond anomalib's own command."""

import difflib
import importlib
import logging
import sys
import warnings
from importlib.metadata import version

COMMANDS = {
    "train": ("anomalib_vae_attention.train.command", "learn from a folder of good parts"),
    "predict": ("anomalib_vae_attention.predict.command", "judge images: verdicts, pictures and a report"),
    "serve": ("anomalib_vae_attention.serve.command", "judge images on a page in a browser"),
    "benchmark": ("anomalib_vae_attention.benchmark.command", "compare vae_attention with other models of anomalib"),
    "calibrate": ("anomalib_vae_attention.calibrate.command", "set thresholds of a trained or exported model anew"),
    "dsprites": ("anomalib_vae_attention.dsprites.command", "train, test and look at disentangled VAEs on dSprites"),
    "explain": ("anomalib_vae_attention.explain.command", "show what each latent of a trained model looks at"),
}
"""Subcommand: the module whose ``main`` takes its arguments, and what it does."""


MEANINGLESS = (
    "Importing from timm.models.layers is deprecated",
    "The anomalib.models.components.dinov2 package is deprecated",
    "`LightningModule.configure_optimizers` returned `None`",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "Total length of `list` across ranks is zero",
    r"Found \d+ module\(s\) in eval mode at the start of training",
)
"""How warnings begin that other packages raise of each other, or of what is meant here."""
CHATTER = ("💡 Tip", "GPU available", "TPU available", "`Trainer(val_check_interval=1.0)`", "`Trainer.fit` stopped")
"""How messages of Lightning begin that say nothing to the user of a command."""
EXTRAS = {
    "openvino": "openvino",
    "onnx": "openvino",
    "onnxscript": "openvino",
    "onnxruntime": "benchmark",
    "gradio": "web",
}
"""Packages that commands may miss, and the extra that brings them."""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand with its arguments, by default those of the command line; its module is imported only then.

    Returns:
        Exit code: 2 for a subcommand that does not exist.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return run(arguments[0], arguments[1:])
    if arguments == ["--version"]:
        print(f"vae-attention {version('anomalib_vae_attention')}, anomalib {version('anomalib')}")
        return 0
    wanted_help = bool(arguments) and arguments[0] in {"-h", "--help"}
    stream = sys.stdout if wanted_help else sys.stderr
    if arguments and not wanted_help:
        near = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        advice = f" Did you mean {near[0]!r}?" if near else ""
        print(f"vae-attention: there is no subcommand {arguments[0]!r}.{advice}", file=stream)
    print("usage: vae-attention SUBCOMMAND [--help] [ARGUMENTS]\n", file=stream)
    for name, (_, purpose) in COMMANDS.items():
        print(f"  {name:<12} {purpose}", file=stream)
    return 0 if wanted_help else 2


def run(name: str, arguments: list[str]) -> int:
    """Run a subcommand that exists, and return its exit code: 1 where a package is missing, 130 after Ctrl-C."""
    for beginning in MEANINGLESS:
        warnings.filterwarnings("ignore", beginning)
    for logger in ("lightning.pytorch.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(logger).addFilter(lambda record: not record.getMessage().startswith(CHATTER))
    try:
        return int(importlib.import_module(COMMANDS[name][0]).main(arguments) or 0)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        print(f"vae-attention {name}: {error.name} is not installed: pip install '.[{extra}]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"vae-attention {name}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

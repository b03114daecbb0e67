"""The command ``vae-attention``: what this package does beyond anomalib's own command."""

import importlib
import sys

COMMANDS = {
    "train": ("anomalib_vae_attention.train.command", "learn from a folder of good parts"),
    "predict": ("anomalib_vae_attention.predict.command", "judge images: verdicts, pictures and a report"),
    "benchmark": ("anomalib_vae_attention.benchmark.command", "compare vae_attention with other models of anomalib"),
    "calibrate": ("anomalib_vae_attention.calibrate.command", "set thresholds of a trained or exported model anew"),
    "dsprites": ("anomalib_vae_attention.dsprites.command", "train, test and look at disentangled VAEs on dSprites"),
    "evaluate": ("anomalib_vae_attention.explain.evaluation", "measure each attention and layer of trained image VAEs"),
    "explain": ("anomalib_vae_attention.explain.command", "show what each latent of a trained model looks at"),
}
"""Subcommand: the module whose ``main`` takes its arguments, and what it does."""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand with its arguments, by default those of the command line; its module is imported only then.

    Returns:
        Exit code: 2 for a subcommand that does not exist.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return int(importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:]) or 0)
    wanted_help = bool(arguments) and arguments[0] in {"-h", "--help"}
    stream = sys.stdout if wanted_help else sys.stderr
    if arguments and not wanted_help:
        print(f"vae-attention: there is no subcommand {arguments[0]!r}.", file=stream)
    print("usage: vae-attention SUBCOMMAND [--help] [ARGUMENTS]\n", file=stream)
    for name, (_, purpose) in COMMANDS.items():
        print(f"  {name:<12} {purpose}", file=stream)
    return 0 if wanted_help else 2


if __name__ == "__main__":
    sys.exit(main())

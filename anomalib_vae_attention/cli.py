"""The command ``vae-attention``: what this package does beyond anomalib's own command."""

import importlib
import sys
from importlib.metadata import version

from anomalib_vae_attention.anomalib_support.command_line import quiet, what_is_missing
from anomalib_vae_attention.common.argument_checks import nearest

COMMANDS = {
    "train": ("anomalib_vae_attention.train.command", "learn from a folder of good parts"),
    "predict": ("anomalib_vae_attention.predict.command", "judge images: verdicts, pictures and a report"),
    "serve": ("anomalib_vae_attention.serve.command", "judge images on a page in a browser"),
    "benchmark": ("anomalib_vae_attention.benchmark.command", "compare vae_attention with other models of anomalib"),
    "calibrate": ("anomalib_vae_attention.calibrate.command", "set thresholds of a trained or exported model anew"),
    "drift": ("anomalib_vae_attention.predict.drift", "chart the share of flagged images: has the line changed?"),
    "dsprites": ("anomalib_vae_attention.dsprites.command", "train, test and look at disentangled VAEs on dSprites"),
    "explain": ("anomalib_vae_attention.explain.command", "show what each latent of a trained model looks at"),
}
"""Subcommand: the module whose ``main`` takes its arguments, and what it does."""

EXIT_WRONG = 2
"""Exit code where arguments, files or the machine are not what a command needs, as that of argparse."""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand with its arguments, by default those of the command line; its module is imported only then.

    Returns:
        Exit code: that of :func:`run`; :data:`EXIT_WRONG` for a subcommand that does not exist.
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
        advice = nearest(arguments[0], COMMANDS)
        print(f"vae-attention: there is no subcommand {arguments[0]!r}.{advice}", file=stream)
        if advice:
            return EXIT_WRONG
    print("usage: vae-attention SUBCOMMAND [--help] [ARGUMENTS]\n", file=stream)
    for name, (_, purpose) in COMMANDS.items():
        print(f"  {name:<12} {purpose}", file=stream)
    return 0 if wanted_help else EXIT_WRONG


def run(name: str, arguments: list[str]) -> int:
    """Run a subcommand that exists, and return its exit code: 130 after Ctrl-C.

    What users can mend is one line and :data:`EXIT_WRONG`: an ``OSError``, ``ValueError`` or ``FloatingPointError``,
    whose message says what is wrong, and a missing package. All else is a fault of ours, with its traceback.
    """
    quiet()
    try:
        return int(importlib.import_module(COMMANDS[name][0]).main(arguments) or 0)
    except ModuleNotFoundError as error:
        message, code = what_is_missing(error), EXIT_WRONG
        if not message:
            raise
    except (OSError, ValueError, FloatingPointError) as error:
        message, code = str(error).removeprefix(f"[Errno {getattr(error, 'errno', None)}] "), EXIT_WRONG
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    print(f"vae-attention {name}: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The arms of a campaign: configs, by themselves or named in a manifest with what differs between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from anomalib_vae_attention.dsprites.lightning_cli import DSpritesCLI, make_cli


class Arm(NamedTuple):
    """A model with its settings, to be run with several seeds.

    Attributes:
        name: Its name, that of its runs' folders but for the seed.
        config: Config file.
        overrides: Arguments that differ from the config, as ``--model.init_args.gamma=10``.
    """

    name: str
    config: Path
    overrides: tuple[str, ...] = ()


class Manifest(NamedTuple):
    """What a campaign runs and compares.

    Attributes:
        arms: The arms.
        compare: Pairs of names of arms, the second of which is the baseline.
    """

    arms: list[Arm]
    compare: list[tuple[str, str]]


class Schedule(NamedTuple):
    """When a campaign on a GPU does what, in optimiser steps of each run; multiples of 20.

    Attributes:
        steps: After how many a run is done.
        score_every: Between two rows of scores.
        save_every: Between two checkpoints; 0 for none at all, not even at the end.
    """

    steps: int
    score_every: int = 10_000
    save_every: int = 50_000


def read_manifest(files: Sequence[Path]) -> Manifest:
    """Read manifests and configs.

    A manifest has ``arms``, each a config, relative to the manifest, with arguments that differ; and may have
    ``compare``, pairs of arms. A config is an arm of its own, named after the file.

    Args:
        files: YAML files of either kind.

    Returns:
        All arms and pairs.

    Raises:
        FileNotFoundError: If a file, or the config of an arm, does not exist.
        ValueError: If a file is no YAML mapping, a manifest is not as above, two arms have one name, or a pair names an
            arm that there is not.
    """
    manifests = [_read(file) for file in files]
    arms = [arm for manifest in manifests for arm in manifest.arms]
    compare = [pair for manifest in manifests for pair in manifest.compare]
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            msg = f"{name} is the name of more than one arm"
            raise ValueError(msg)
    for name in (name for pair in compare for name in pair):
        if name not in names:
            msg = f"compare names the arm {name}; there are {', '.join(names)}"
            raise ValueError(msg)
    return Manifest(arms, compare)


def _read(file: Path) -> Manifest:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        msg = f"{file} is no YAML: {error}"
        raise ValueError(msg) from error
    if not isinstance(content, dict):
        msg = f"{file} is neither a config nor a manifest of arms"
        raise ValueError(msg)  # noqa: TRY004
    if "arms" not in content:
        return Manifest([Arm(file.stem, file)], [])
    arms, compare, unknown = content["arms"], content.get("compare", []), content.keys() - {"arms", "compare"}
    if unknown:
        msg = f"{file}: a manifest has arms and compare, but this one has {', '.join(sorted(unknown))}, too"
        raise ValueError(msg)
    if not (isinstance(arms, dict) and all(isinstance(arm, dict) and "config" in arm for arm in arms.values())):
        msg = f"{file}: arms must be names, and below each its config and what differs"
        raise ValueError(msg)
    if not (isinstance(compare, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in compare)):
        msg = f"{file}: compare must be a list of pairs of arms, such as [attention, baseline]"
        raise ValueError(msg)
    pairs = [(first, second) for first, second in compare]
    return Manifest([_arm(file, str(name), settings) for name, settings in arms.items()], pairs)


def _arm(file: Path, name: str, settings: dict[str, Any]) -> Arm:
    config = file.parent / settings["config"]
    if not config.is_file():
        msg = f"{file}: the config of the arm {name}, {config}, does not exist"
        raise FileNotFoundError(msg)
    return Arm(name, config, tuple(f"--{key}={value}" for key, value in settings.items() if key != "config"))


def arguments_of(arm: Arm, seed: int, run: Path, more: list[str]) -> list[str]:
    """List the arguments of ``fit`` for one run of an arm."""
    where = ["--seed_everything", str(seed), "--trainer.default_root_dir", str(run)]
    return ["--config", str(arm.config), *arm.overrides, *where, *more]


def make_run(arm: Arm, seed: int, run: Path, more: list[str]) -> DSpritesCLI:
    """Make model, data and trainer of one run of an arm.

    Raises:
        ValueError: If its arguments are wrong; which, was printed.
    """
    try:
        return make_cli(arguments_of(arm, seed, run, more), run=False)
    except SystemExit as error:
        msg = f"the arguments of the arm {arm.name} are wrong, as said above: see {arm.config} and what differs from it"
        raise ValueError(msg) from error

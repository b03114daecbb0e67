"""The arms of a campaign: configs, by themselves or named in a manifest with what differs between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml


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
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is no YAML mapping, two arms have one name, or a pair names an arm that there is not.
    """
    arms: list[Arm] = []
    compare: list[tuple[str, str]] = []
    for file in files:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            msg = f"{file} is neither a config nor a manifest of arms"
            raise ValueError(msg)  # noqa: TRY004
        if "arms" not in content:
            arms.append(Arm(file.stem, file))
            continue
        for name, settings in content["arms"].items():
            changed = {key: value for key, value in settings.items() if key != "config"}
            overrides = tuple(f"--{key}={value}" for key, value in changed.items())
            arms.append(Arm(name, file.parent / settings["config"], overrides))
        compare += [(first, second) for first, second in content.get("compare", [])]
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


def arguments_of(arm: Arm, seed: int, run: Path, more: list[str]) -> list[str]:
    """List the arguments of ``fit`` for one run of an arm."""
    where = ["--seed_everything", str(seed), "--trainer.default_root_dir", str(run)]
    return ["--config", str(arm.config), *arm.overrides, *where, *more]

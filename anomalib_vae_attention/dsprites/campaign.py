"""Several models with several seeds, one after the other, resumable, and their metrics over the steps in one table.

    python -m anomalib_vae_attention.dsprites.campaign configs/dsprites/{beta_vae,factor_vae,ad_factor_vae}.yaml \
        --seeds 0 1 2 --max_steps 20000 --output results/dsprites/campaign

A run that was stopped goes on from its last checkpoint when the command is given again; one that is done is left alone.
Commands side by side, with different configs or seeds, can share an output folder.
Arguments that are not the campaign's own, such as ``--data.root``, are handed on to every run.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from anomalib_vae_attention.common.atomic_files import replacing

from .callbacks import SCORES_FILE, TEST_FILE
from .command import main as run_command
from .plots import plot_courses, plot_runs


def finished_steps(run: Path) -> int:
    """Return after how many steps a run was tested; 0 if it was not."""
    file = run / TEST_FILE
    return int(json.loads(file.read_text(encoding="utf-8"))["step"]) if file.is_file() else 0


def run_all(configs: Sequence[Path], seeds: Sequence[int], steps: int, output: Path, more: list[str]) -> list[Path]:
    """Fit and test what has not been done yet, seed by seed, so that early results compare all models.

    Args:
        configs: Config files, one a model.
        seeds: Seeds of the runs.
        steps: Optimiser steps of each run.
        output: Folder of all runs; each has a folder named after its config and seed.
        more: Further arguments for every run.

    Returns:
        The folders of the runs that are done.
    """
    done = []
    for seed in seeds:
        for config in configs:
            run = output / f"{config.stem}-{seed}"
            shared = ["--config", str(config), "--seed_everything", str(seed), "--trainer.default_root_dir", str(run)]
            shared += ["--trainer.max_steps", str(steps), "--ckpt_path", "last", *more]
            if finished_steps(run) < steps and any(run_command([job, *shared]) for job in ("fit", "test")):
                print(f"{run} failed; the others go on.", file=sys.stderr)
                continue
            done.append(run)
            collect(output)
    return done


def collect(output: Path) -> None:
    """Gather the runs of a folder: scores over the steps in ``scores.csv``, tests in ``results.csv``, both plotted.

    Runs that are not done are in the first, so that their course can be looked at, and commands side by side can share
    a folder.

    Args:
        output: Folder of the runs, which are named after config and seed.

    Raises:
        OSError: If a file cannot be read or written.
    """
    courses, results, tested = [], [], []
    for file in sorted(output.glob(f"*-*/{SCORES_FILE}")):
        config, _, seed = file.parent.name.rpartition("-")
        names = {"config": config, "seed": int(seed)}
        courses.append(pd.read_csv(file).assign(**names))
        if finished_steps(file.parent):
            tested.append(file.parent)
            results.append({**names, **json.loads((file.parent / TEST_FILE).read_text(encoding="utf-8"))})
    if courses:
        table = pd.concat(courses)
        table.insert(0, "seed", table.pop("seed"))
        table.insert(0, "config", table.pop("config"))
        write_table(table, output / "scores.csv")
        plot_courses(table, output / "course.png")
    if tested:
        write_table(pd.DataFrame(results), output / "results.csv")
        plot_runs(tested, output)


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Write a table as CSV, whole or not at all."""
    with replacing(file) as temporary:
        table.to_csv(temporary, index=False)


def print_table(file: Path) -> None:
    """Print mean and, of several seeds, standard deviation (over n - 1) of each metric in ``results.csv``."""
    table = pd.read_csv(file)
    for name in ("factor_vae_score", "mig", "dci_disentanglement", "reconstruction"):
        print(name)
        for config, values in table.groupby("config", sort=False)[name]:
            spread = f" +- {values.std():.3f} ({len(values)} seeds)" if len(values) > 1 else " (one seed)"
            print(f"  {config:<16} {values.mean():8.3f}{spread}")


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign.

    Args:
        arguments: Those of the command line by default.

    Returns:
        Exit code: 1 if a run failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path, help="config files, one a model")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=20_000, help="steps of each run, whole epochs of 1,000")
    parser.add_argument("--output", type=Path, default=Path("results/dsprites/campaign"))
    chosen, more = parser.parse_known_args(arguments)
    done = run_all(chosen.configs, chosen.seeds, chosen.max_steps, chosen.output, more)
    if done:
        print_table(chosen.output / "results.csv")
    return int(len(done) < len(chosen.configs) * len(chosen.seeds))


if __name__ == "__main__":
    sys.exit(main())

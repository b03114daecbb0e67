"""Several models of dSprites with several seeds, resumable, in one table.

    python docs/studies/campaign.py configs/dsprites/campaign.yaml --seeds 0 1 2 --accelerator gpu --minutes 9
    python docs/studies/campaign.py configs/dsprites/{beta_vae,factor_vae}.yaml --max_steps 20000

On processors the runs are trained one after the other, and commands side by side, with different arms or seeds, can
share an output folder. On a GPU all of them are trained side by side. Either goes on where it was stopped when the
command is given again, and leaves runs alone that are done: other seeds join them, also in a copy of the folder without
its ``stacked.ckpt`` on another machine. Tables and comparison are of all runs of the folder. Arguments that are not the
campaign's own, such as ``--data.root``, are handed on to every run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from stacked.arms import Arm, Schedule, arguments_of, make_run, read_manifest
from stacked.campaign import finished_steps
from stacked.comparison import METRICS, compare, plot_courses, plot_runs
from stacked.launch import run_side_by_side

from anomalib_vae_attention.common.atomic_files import read_json, write_table
from anomalib_vae_attention.dsprites import command
from anomalib_vae_attention.dsprites.callbacks import SCORES_FILE, TEST_FILE


def run_all(arms: Sequence[Arm], seeds: Sequence[int], steps: int, output: Path, more: list[str]) -> list[Path]:
    """Fit and test what has not been done yet, seed by seed, so that early results compare all models.

    Args:
        arms: The models.
        seeds: Seeds of the runs.
        steps: Optimiser steps of each run.
        output: Folder of all runs; each has a folder named after its arm and seed.
        more: Further arguments for every run.

    Returns:
        The folders of the runs that are done.
    """
    done = []
    for seed in seeds:
        for arm in arms:
            run = output / f"{arm.name}-{seed}"
            shared = [*arguments_of(arm, seed, run, more), "--trainer.max_steps", str(steps), "--ckpt_path", "last"]
            try:
                for job in ("fit", "test") if finished_steps(run) < steps else ():
                    command.main([job, *shared])
            except (OSError, ValueError, FloatingPointError) as error:
                print(f"{run} failed, the others go on: {error}", file=sys.stderr)
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
    courses, results = [], []
    # A run that is shorter than what lies between two rows of scores has its test alone.
    for run in sorted({file.parent for name in (SCORES_FILE, TEST_FILE) for file in output.glob(f"*-*/{name}")}):
        config, _, seed = run.name.rpartition("-")
        names = {"config": config, "seed": int(seed)}
        if (run / SCORES_FILE).is_file():
            courses.append(pd.read_csv(run / SCORES_FILE).assign(**names))
        if finished_steps(run):
            results.append({**names, **read_json(run / TEST_FILE)})
    if courses:
        table = pd.concat(courses)
        table.insert(0, "seed", table.pop("seed"))
        table.insert(0, "config", table.pop("config"))
        write_table(output / "scores.csv", table)
        plot_courses(table, output / "course.png")
    if results:
        write_table(output / "results.csv", pd.DataFrame(results))
        plot_runs(pd.DataFrame(results), output / "disentanglement.png")


def print_tables(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Print mean and, of several seeds, standard deviation (over n - 1) of each metric, and compare pairs of arms.

    Runs that have done fewer steps than others are named and left out.
    """
    table = pd.read_csv(folder / "results.csv")
    most = table["step"].max()
    for row in table[table["step"] < most].itertuples():
        print(f"{row.config}-{row.seed} is left out: it has done {row.step} of {most} steps")
    table = table[table["step"] == most]
    for name in (metric for metric in METRICS if metric in table):
        print(name)
        for config, values in table.groupby("config", sort=False)[name]:
            spread = f" +- {values.std():.3f} ({len(values)} seeds)" if len(values) > 1 else " (one seed)"
            print(f"  {config:<24} {values.mean():8.3f}{spread}")
    compared = compare(table, pairs)
    if len(compared):
        write_table(folder / "comparison.csv", compared)
        print(compared.to_string(index=False, float_format="%.3f"))


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign.

    Args:
        arguments: Those of the command line by default.

    Returns:
        Exit code: 1 if a run failed, a manifest is wrong, or there is no GPU where one is asked for.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="config files, one per model, or manifests of arms")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=20_000, help="steps of each run, whole epochs of 1,000")
    parser.add_argument("--output", type=Path, default=Path("results/dsprites/campaign"))
    parser.add_argument(
        "--accelerator", choices=("cpu", "gpu"), default="cpu", help="gpu: all runs side by side on one"
    )
    parser.add_argument("--minutes", type=float, help="gpu: stop training after this long; the command goes on later")
    parser.add_argument("--score_every", type=int, default=10_000, help="gpu: steps between two rows of scores")
    parser.add_argument("--save_every", type=int, default=50_000, help="gpu: steps between two checkpoints, 0 for none")
    chosen, more = parser.parse_known_args(arguments)
    try:
        return run_campaign(chosen, more)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


def run_campaign(chosen: argparse.Namespace, more: list[str]) -> int:
    """Run the campaign of the parsed arguments, with more of them for every run, and return the exit code."""
    if chosen.minutes is not None and chosen.accelerator != "gpu":
        msg = "--minutes is of --accelerator gpu; on processors, stop the command and give it again later"
        raise ValueError(msg)
    manifest = read_manifest(chosen.files)
    for arm in manifest.arms:
        # Before hours are spent on the arms that come first.
        make_run(arm, chosen.seeds[0], chosen.output / arm.name, more)
    if chosen.accelerator == "gpu":
        schedule = Schedule(chosen.max_steps, chosen.score_every, chosen.save_every)
        done = run_side_by_side(manifest.arms, chosen.seeds, schedule, chosen.output, more, chosen.minutes)
        collect(chosen.output)
    else:
        done = run_all(manifest.arms, chosen.seeds, chosen.max_steps, chosen.output, more)
    if (chosen.output / "results.csv").is_file():
        print_tables(chosen.output, manifest.compare)
    return int(len(done) < len(manifest.arms) * len(chosen.seeds))


if __name__ == "__main__":
    raise SystemExit(main())

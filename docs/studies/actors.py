"""How fast Ray's actors are side by side, and what memory they take: ``python docs/studies/actors.py MODEL IMAGES``.

Links the images of a folder under as many names as are wanted, and predicts them with ``--engine ray`` and each number
of actors in turn, then again. It prints rows per second once all actors run, the whole command with its start, and the
ratios to the first number of actors. And the memory of all processes of the command (proportional set sizes): its
course in ten parts of that time, and its peak. For memory over many images: ``--count 20000 --actors 2 --rounds 1``.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anomalib_vae_attention.common.machine import cores, describe_machine
from anomalib_vae_attention.common.mvtec_layout import list_images

INTERVAL = 2
"""Seconds between two looks at the memory."""


class Measured(NamedTuple):
    """A run of the command.

    Attributes:
        rate: Rows per second once all actors run.
        whole: Images per second of the whole command.
        course: Mean memory in each tenth of the time that all actors run, in MiB.
        peak: The most of the whole command, in MiB.
    """

    rate: float
    whole: float
    course: list[float]
    peak: float


def link_images(sources: Sequence[Path], count: int, folder: Path) -> None:
    """Make so many names in a new folder, each a link to one of the sources."""
    folder.mkdir()
    for number in range(count):
        source = sources[number % len(sources)]
        (folder / f"{number:06}{source.suffix}").symlink_to(source.resolve())


def steady(parts: Sequence[tuple[float, int]], actors: int) -> tuple[float, float, float]:
    """Find the time in which all actors run, and their rate.

    The time begins when as many parts as there are actors are written: until then an actor may have been starting. What
    is written later was judged in it, whether actors write together or in turn.

    Args:
        parts: When each part of the table was written, in seconds, and its rows.
        actors: How many there are.

    Returns:
        Begin and end, in seconds, and rows per second.

    Raises:
        ValueError: If there are not two parts per actor.
    """
    if len(parts) < 2 * actors:
        msg = f"{len(parts)} parts of {actors} actors are too few to tell a rate: take more images (--count)."
        raise ValueError(msg)
    ordered = sorted(parts)
    begin, end = ordered[actors - 1][0], ordered[-1][0]
    return begin, end, sum(rows for _, rows in ordered[actors:]) / (end - begin)


def memory_mib(process: int) -> float:
    """Return the memory of a process and all below it, in MiB; what they share counts once (Linux)."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything.
            parent = int(entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        below.setdefault(parent, []).append(int(entry.parent.name))
    total, waiting = 0, [process]
    while waiting:
        one = waiting.pop()
        waiting += below.get(one, [])
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**10


def measure(model: Path, images: Path, folder: Path, actors: int) -> Measured:
    """Run the command once, and look at it from outside.

    Raises:
        RuntimeError: If it fails, or an image has no row, or several.
    """
    command = [sys.executable, "-m", "anomalib_vae_attention.cli", "predict", str(model), str(images)]
    command += ["--engine", "ray", "--actors", str(actors), "--output", str(folder)]
    # Here, because only the extra ray brings it.
    import pyarrow.parquet as pq

    start, looks = time.time(), []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603 - its own command
        while process.poll() is None:
            looks.append((time.time(), memory_mib(process.pid)))
            time.sleep(INTERVAL)
    seconds, count = time.time() - start, len(list_images(images))
    tables = {file: pq.read_table(file, columns=["path"])["path"] for file in (folder / "parts").glob("*.parquet")}
    paths = [path for table in tables.values() for path in table.to_pylist()]
    if process.returncode or len(paths) != count or len(set(paths)) != count:
        msg = f"exit code {process.returncode}; {len(paths)} rows of {len(set(paths))} images, not {count}"
        raise RuntimeError(msg)
    begin, end, rate = steady([(file.stat().st_mtime, len(table)) for file, table in tables.items()], actors)
    running = [memory for at, memory in looks if begin <= at <= end]
    course = [float(tenth.mean()) for tenth in np.array_split(running, 10) if len(tenth)]
    return Measured(rate, count / seconds, course, max(memory for _, memory in looks))


def main(arguments: list[str] | None = None) -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint, .onnx or .xml")
    parser.add_argument("images", type=Path, help="folder of images to link")
    parser.add_argument("--count", type=int, default=2000, help="images to predict in each run (2000)")
    parser.add_argument(
        "--actors", type=int, nargs="+", default=[1, cores()], help="numbers of them (1, and one per core)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="how often each (2)")
    given = parser.parse_args(arguments)
    sources = list_images(given.images)
    if not sources:
        parser.error(f"{given.images}: there is no image there")
    print(describe_machine())
    runs: dict[int, list[Measured]] = {actors: [] for actors in given.actors}
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch, "images")
        link_images(sources, given.count, images)
        for turn in range(given.rounds):
            for actors in runs:
                found = measure(given.model, images, Path(scratch, f"{turn}-{actors}"), actors)
                runs[actors].append(found)
                print(
                    f"{actors} actors: {found.rate:.1f} rows per second, the whole command {found.whole:.1f}; memory "
                    f"{', '.join(f'{memory:.0f}' for memory in found.course)}, at most {found.peak:.0f} MiB",
                    flush=True,
                )
    medians = {actors: np.median([run[:2] for run in some], axis=0) for actors, some in runs.items()}
    for actors in given.actors[1:]:
        rate, whole = medians[actors] / medians[given.actors[0]]
        print(f"{actors} actors beside {given.actors[0]}: {rate:.2f} times the rate, {whole:.2f} with the start")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Latency of several models in one runtime: ``python -m anomalib_vae_attention.benchmark.latency FILE``.

FILE is a JSON file of what to measure (see :func:`run`); the results are written beside it. The models take turns, in
another order every round, so that what else the machine does meets all of them alike. One process measures one runtime:
the threads of two would wait for work at each other's expense. On a GPU each model has the card to itself.
"""

import logging
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomalib_vae_attention.common.atomic_files import read_json, write_json

from .data import read_image
from .jobs import DONE, RESULT
from .plan import CUDA, Cell, read_cell
from .runtimes import RUNTIMES, NotSupportedError, differences, to_input

logger = logging.getLogger(__name__)

CALLS = 3
"""Timed calls per turn, after one that brings the model back into the caches."""
ROUNDS, BUDGET = 20, 20.0
"""Turns of each model, and seconds beyond which a slow model has no further turn."""
SLOW = 1.0
"""Seconds beyond which a call is a turn of its own: it is hardly shorter with warm caches."""
GPU_CALLS, GPU_BUDGET = 2000, 4.0
"""Calls on a GPU, of which the later half counts, as in Batzner et al., "EfficientAD" (WACV 2024), and seconds beyond
which there are fewer; in batches a quarter of the seconds."""
MOST_ERROR = 500
"""Most characters of an error that are kept."""


def measure(
    calls: dict[str, Callable[[int], object]],
    rounds: int,
    budget: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Any]]:
    """Time several functions in turns.

    Args:
        calls: Name and function, which takes the number of the call.
        rounds: Turns of each function, 1 or more.
        budget: Seconds that one function may take in all; beyond them it has no further turn after the third.
        clock: Gives the seconds; ``time.process_time`` leaves out what other processes take.

    Returns:
        For each name ``median_ms`` and the quartiles ``q25_ms`` and ``q75_ms`` in milliseconds, and the number of
        ``calls`` timed, or ``error``.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    errors: dict[str, str] = {}
    shuffled = random.Random(0)  # noqa: S311 - an order, not a secret
    for turn in range(-1, rounds):
        for name in shuffled.sample(sorted(calls), len(calls)):
            if name in errors or (spent[name] > budget and turn >= CALLS):
                continue
            try:
                taken = _take_turn(calls[name], 1 + turn * CALLS, clock)
            except Exception as error:
                logger.exception("%s failed.", name)
                errors[name] = f"{type(error).__name__}: {error}"[:MOST_ERROR]
                continue
            # The first round warms up.
            if turn >= 0:
                times[name] += taken
                spent[name] += sum(taken)
    return {name: {"error": errors[name]} if name in errors else _summary(times[name]) for name in calls}


def _take_turn(call: Callable[[int], object], number: int, clock: Callable[[], float]) -> list[float]:
    taken = []
    for index in range(1 + CALLS):
        start = clock()
        call(number + index)
        taken.append(clock() - start)
        if taken[0] > SLOW:
            return taken
    return taken[1:]


def _summary(times: list[float]) -> dict[str, Any]:
    q25, median, q75 = np.quantile(np.array(times) * 1000, [0.25, 0.5, 0.75]).tolist()
    return {"median_ms": median, "q25_ms": q25, "q75_ms": q75, "calls": len(times)}


def _batches(images: Sequence[NDArray[np.uint8]], batch: int) -> list[NDArray[np.uint8]]:
    # Few images are taken more than once.
    return [
        np.stack([images[(index * batch + place) % len(images)] for place in range(batch)])
        for index in range(max(1, len(images) // batch))
    ]


def in_batches(
    run: Callable[[Any], object], images: Sequence[NDArray[np.uint8]], batch: int
) -> Callable[[int], object]:
    """Make a function for :func:`measure` that runs images ``(H, W, 3)``, so many at a time, in their order."""
    batches = _batches(images, batch)
    return lambda number: run(batches[number % len(batches)])


def _on_gpu(
    load: Callable[..., Any], cell: Cell, folder: Path, images: list[NDArray[np.uint8]], batch: int
) -> dict[str, Any]:
    """Load a model onto the GPU, compare it with the CPU, and time it by itself, from floats to results."""
    run = load(cell, folder, (batch, *images[0].shape[:2]), 1)
    inputs = [torch.from_numpy(to_input(some)).pin_memory() for some in _batches(images, batch)]
    agreement = differences(cell, folder, run, inputs)
    times: list[float] = []
    budget = GPU_BUDGET if batch == 1 else GPU_BUDGET / 4
    while len(times) < GPU_CALLS and sum(times) < budget:
        start = time.perf_counter()
        run(inputs[len(times) % len(inputs)])
        times.append(time.perf_counter() - start)
    counted = times[len(times) // 2 :]
    memory = torch.cuda.max_memory_allocated() / 2**20
    found = {**_summary(counted), "mean_ms": 1000 * sum(counted) / len(counted), "gpu_mib": memory, **agreement}
    logger.info("%s, batch of %d: %s", cell, batch, found)
    return found


def run(file: Path) -> None:
    """Measure what a JSON file says.

    Args:
        file: The file: ``runtime``; ``models``, the folder of the cell of each; ``images``, files; ``input_size``,
            height and width that each image has or is resized to beforehand; ``batches``, numbers of images at a time;
            ``threads``.
    """
    wanted = read_json(file)
    load = RUNTIMES[wanted["runtime"]]
    size = tuple(wanted["input_size"])
    files = [Path(image) for image in wanted["images"]]
    images = [read_image(image, size) for image in files]
    results: dict[str, dict[str, Any]] = {name: {} for name in wanted["models"]}
    for batch in wanted["batches"]:
        calls: dict[str, Callable[[int], object]] = {}
        from_files: dict[str, Callable[[int], object]] = {}
        for name, folder in wanted["models"].items():
            try:
                cell = read_cell(read_json(Path(folder, "cell.json")))
                if wanted["runtime"].startswith(CUDA):
                    results[name][f"batch {batch}"] = _on_gpu(load, cell, Path(folder), images, batch)
                    continue
                runner = load(cell, Path(folder), (batch, *size), wanted["threads"])
            except Exception as error:
                logger.exception("%s could not be loaded or run.", name)
                kind = "" if isinstance(error, NotSupportedError) else f"{type(error).__name__}: "
                results[name][f"batch {batch}"] = {"error": f"{kind}{error}"[:MOST_ERROR]}
                continue
            calls[name] = in_batches(runner, images, batch)
            from_files[name] = partial(
                lambda run, number: run(read_image(files[number % len(files)], size)[None]), runner
            )
        for way, timed in {f"batch {batch}": calls, "file": from_files if batch == 1 else {}}.items():
            for name, summary in measure(timed, ROUNDS, BUDGET).items():
                results[name][way] = summary
    write_json(file.with_name(RESULT), {"status": DONE, "latency": results})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    run(Path(sys.argv[1]))

"""How fast `vae-attention predict` is beside its model alone: ``python docs/studies/prediction_rate.py MODEL IMAGES``.

Makes so many images of those in a folder, a little shifted, brighter or darker, and predicts all of them, with table,
pictures and report, a few times. Before and after each run the same model, with the same threads, judges images that
lie in memory already. It prints the ratio of the two rates, that of their processor time, which a busy machine
changes less, and the memory of the process after each run. Then it starts the command, kills it when a third of the
rows are there, starts it again, and demands each image once.
"""

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_vae_attention.common.images import read_upright
from anomalib_vae_attention.common.machine import describe_machine
from anomalib_vae_attention.common.mvtec_layout import list_images
from anomalib_vae_attention.predict.inputs import Input, find_inputs
from anomalib_vae_attention.predict.models import Model, load_model
from anomalib_vae_attention.predict.results import OVERLAYS, TABLE, read_rows
from anomalib_vae_attention.predict.run import BATCH_SIZE, predict

RUNS = 5


def make_images(sources: Sequence[Path], count: int, folder: Path) -> None:
    """Write so many images, each of one of the sources, in their format."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        source = sources[number % len(sources)]
        pixels = np.roll(read_upright(source), random.integers(-8, 9, 2), (0, 1)) * random.uniform(0.95, 1.05)
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        picture.save(folder / f"{number:05}{source.suffix}", compress_level=1)


def memory_mib() -> float:
    """Return the memory that this process has now, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS")]
    return int(line.split()[1]) / 2**10


def cost(work: Callable[[], object], count: int) -> tuple[float, float]:
    """Return seconds, and processor seconds of all threads, per image of some work on so many."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - start) / count, (time.process_time() - busy) / count


def compare(model: Model, inputs: Sequence[Input], folder: Path, batch_size: int) -> tuple[float, float]:
    """Predict images some times, each into a folder of its own, and print costs and memory.

    Returns:
        The median share of the model's own rate, and of the processor's time that the model itself takes.
    """
    batch = np.stack([read_upright(one.path) for one in inputs[:batch_size]])
    floats = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), np.float32)
    floats /= 255
    turns = max(1, len(inputs) // (4 * batch_size))

    def alone() -> tuple[float, float]:
        return cost(lambda: [model.score(floats) for _ in range(turns)], turns * batch_size)

    alone()
    before, shares = alone(), []
    for run in range(RUNS):
        target = folder / str(run)
        whole = cost(lambda: predict(model, inputs, target, "Rate", batch_size=batch_size), len(inputs))  # noqa: B023
        after = alone()
        shares.append([(one + other) / 2 / both for one, other, both in zip(before, after, whole, strict=True)])
        print(f"run {run + 1}: {shares[-1][0]:.2f}, {shares[-1][1]:.2f}; memory {memory_mib():.0f} MiB", flush=True)
        before = after
    rate, busy = (statistics.median(values) for values in zip(*shares, strict=True))
    return rate, busy


def kill_and_go_on(model: Path, images: Path, folder: Path, count: int) -> int:
    """Kill the command at a third of its rows, and give it again.

    Returns:
        How many rows were there when it was killed.

    Raises:
        RuntimeError: If an image is missing, or has two rows, or a row was made twice.
    """
    command = [sys.executable, "-m", "anomalib_vae_attention.cli", "predict", str(model), str(images)]
    command += ["--output", str(folder)]
    with subprocess.Popen(command) as process:  # noqa: S603 - its own command
        while process.poll() is None and len(read_rows(folder / TABLE)) < count / 3:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    before = read_rows(folder / TABLE)
    subprocess.run(command, check=True)  # noqa: S603 - its own command
    after = Counter(row["path"] for row in read_rows(folder / TABLE))
    again = [row for row in before if row not in read_rows(folder / TABLE)]
    if len(after) != count or set(after.values()) != {1} or again or len(list_images(folder / OVERLAYS)) != count:
        msg = f"{len(after)} of {count} images, at most {max(after.values())} rows each, {len(again)} judged again"
        raise RuntimeError(msg)
    return len(before)


def main(arguments: list[str] | None = None) -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint, .onnx or .xml")
    parser.add_argument("images", type=Path, help="folder of images to make others of")
    parser.add_argument("--count", type=int, default=500, help="images to predict (500)")
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE, help=f"most images at once ({BATCH_SIZE})")
    parser.add_argument("--skip_kill", action="store_true", help="measure only")
    given = parser.parse_args(arguments)
    print(describe_machine())
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch, "images")
        make_images(list_images(given.images), given.count, images)
        rate, busy = compare(load_model(given.model), find_inputs([images]), Path(scratch, "rate"), given.batch_size)
        print(
            f"{given.model.name}: predict has {rate:.2f} of the model's own rate, "
            f"and the model takes {busy:.2f} of the processor time"
        )
        if not given.skip_kill:
            rows = kill_and_go_on(given.model, images, Path(scratch, "killed"), given.count)
            print(f"killed with {rows} of {given.count} rows, and started again: each image once")
    return 0


if __name__ == "__main__":
    sys.exit(main())

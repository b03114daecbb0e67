"""Interruption: ``python -m anomalib_vae_attention.reliability.interruption``.

Draws data, fits, and exports to PyTorch in a process that is killed (SIGKILL) at a random moment of one of these steps,
each in its turn, many times over in one folder. After each kill every checkpoint and export is loaded and every drawn
image read; states must be those of a run that nobody interrupted, to the last bit. At the end the run is done again,
undisturbed, on what the kills left. The folder for temporary files can be put on another disk (``--temporary``), where
a move is a copy.
"""

import argparse
import logging
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.files import write_json

STEPS = ("drawing", "fitting", "exporting")
POLL_SECONDS = 0.001


def run(root: Path, step: Any = None) -> None:  # noqa: ANN401
    """Draw, fit and export, in folders below a root.

    Args:
        root: The folder.
        step: Where to say which of :data:`STEPS` is going on.
    """

    def say(name: str) -> None:
        if step is not None:
            step.value = STEPS.index(name)

    torch.set_num_threads(1)
    seed_everything(0)
    say("drawing")
    datamodule = EmbeddedAD(root=root / "data")
    datamodule.prepare_data()
    say("fitting")
    pre_processor = VaeAttention.configure_pre_processor((128, 128))
    model = VaeAttention(pre_processor=pre_processor, visualizer=False, latent_dim=32)
    engine = Engine(
        default_root_dir=root / "results",
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    engine.fit(model=model, datamodule=datamodule)
    say("exporting")
    model.to_torch(root / "export")


def check(root: Path, expected: dict[str, torch.Tensor], files: set[Path], known: set[Path]) -> Counter:
    """Look at what an interrupted run has left.

    Args:
        root: Folder of the run.
        expected: State of the model after a run that nobody interrupted.
        files: Drawn images of that run, relative to its root.
        known: Checkpoints that were found whole before, and are not looked at again; new ones are added.

    Returns:
        How many checkpoints, exports and images there are.

    Raises:
        AssertionError: If one of them is not whole, naming it.
        Exception: Whatever loading one of them raises.
    """
    found: Counter = Counter()
    for checkpoint in set(root.rglob("*.ckpt")) - known:
        _compare(VaeAttention.load_from_checkpoint(checkpoint).state_dict(), expected, checkpoint)
        known.add(checkpoint)
        found["checkpoints"] += 1
    for export in (root / "export").glob("weights/torch/*.pt"):
        _compare(TorchInferencer(export, device="cpu").model.state_dict(), expected, export)
        found["exports"] += 1
    if (root / "data" / "washer").is_dir():
        drawn = {file.relative_to(root) for file in (root / "data" / "washer").rglob("*.png")}
        if drawn != files:
            msg = f"{len(files - drawn)} of {len(files)} images are missing in {root / 'data' / 'washer'}."
            raise AssertionError(msg)
        for file in drawn:
            with Image.open(root / file) as image:
                image.load()
        found["drawn data sets"] += 1
    return found


def _compare(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], source: Path) -> None:
    differing = [name for name in expected if not torch.equal(state[name], expected[name])]
    if differing or state.keys() != expected.keys():
        msg = f"{source} differs from the state of a run that was not interrupted: {differing}."
        raise AssertionError(msg)


def interrupt(root: Path, step: str, seconds: float) -> str:
    """Run in a process of its own, and kill it some time after a step has begun.

    Returns:
        The step in which it was killed, or ``"done"``.
    """
    process, reached = _start(root)
    while process.is_alive() and reached.value < STEPS.index(step):
        time.sleep(POLL_SECONDS)
    process.join(seconds)
    if not process.is_alive():
        return "done"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return STEPS[reached.value]


def measure(root: Path) -> dict[str, float]:
    """Run in a process of its own, undisturbed, and return the seconds that each of :data:`STEPS` takes."""
    process, reached = _start(root)
    began: dict[str, float] = {}
    while process.is_alive():
        began.setdefault(STEPS[reached.value], time.monotonic())
        time.sleep(POLL_SECONDS)
    ends = [*list(began.values())[1:], time.monotonic()]
    return {step: end - start for (step, start), end in zip(began.items(), ends, strict=True)}


def _start(root: Path) -> tuple[multiprocessing.context.ForkProcess, Any]:
    context = multiprocessing.get_context("fork")
    reached = context.Value("i", 0)
    process = context.Process(target=run, args=(root, reached))
    process.start()
    return process, reached


def main(arguments: list[str] | None = None) -> int:
    """Interrupt, check, print what was found and write ``interruption.json``.

    Args:
        arguments: Those of the command line by default.

    Returns:
        Exit code; a fault is an exception.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30, help="how often to kill (30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (0)")
    parser.add_argument("--temporary", type=Path, help="folder for temporary files, such as /dev/shm")
    parser.add_argument("--output", type=Path, default=Path("results/interruption"), help="folder")
    parsed = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    # The export is our own.
    os.environ["TRUST_REMOTE_CODE"] = "1"
    if parsed.temporary:
        tempfile.tempdir = str(parsed.temporary.resolve())
    shutil.rmtree(parsed.output, ignore_errors=True)
    whole = parsed.output / "undisturbed"
    run(whole)
    (checkpoint,) = whole.rglob("*.ckpt")
    expected = VaeAttention.load_from_checkpoint(checkpoint).state_dict()
    # Again, because the first run has loaded what those to be killed start with.
    seconds = measure(parsed.output / "timed")
    files = {file.relative_to(whole) for file in (whole / "data" / "washer").rglob("*.png")}
    moments = random.Random(parsed.seed)  # noqa: S311 - nothing secret
    killed: Counter = Counter()
    checked: Counter = Counter()
    known: set[Path] = set()
    root = parsed.output / "interrupted"
    for number in range(parsed.times):
        step = STEPS[number % len(STEPS)]
        if step == "drawing":
            shutil.rmtree(root / "data", ignore_errors=True)
        killed[interrupt(root, step, moments.uniform(0, seconds[step]))] += 1
        checked += check(root, expected, files, known)
        print(f"{number + 1} of {parsed.times}: killed while {dict(killed)}, whole: {dict(checked)}", flush=True)
    run(root)
    check(root, expected, files, set())
    others = [file for file in root.rglob("*") if file.is_file() and file.suffix not in {".ckpt", ".pt", ".png"}]
    left = sorted(str(file.relative_to(root)) for file in others)
    result = {"killed_while": killed, "found_whole": checked, "seconds_undisturbed": seconds, "other_files": left}
    write_json(parsed.output / "interruption.json", result)
    print(f"The run after all interruptions gives the same state. Other files left: {left or 'none'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

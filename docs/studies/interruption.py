"""Interruption: ``python docs/studies/interruption.py``.

Does each of :data:`STEPS` in a process that is killed (SIGKILL) at a random moment, many times over in one folder, and
after each kill looks at every file that is there: it must be that of a run that nobody interrupted, checkpoints and
exports to the last bit of every tensor, images and pages to the last byte. A killed training of an image VAE is
resumed from its last checkpoint, with another seed, and must end in the state of the run that nobody interrupted. The
folder for temporary files can be put on another disk (``--temporary``), where a move is a copy.
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
from collections.abc import Callable
from pathlib import Path

import torch
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from lightning import seed_everything

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.common.atomic_files import write_json
from anomalib_vae_attention.common.machine import describe_machine
from anomalib_vae_attention.explain.command import main as explain

EPOCHS = 8
"""Epochs of the image VAE, a checkpoint after each."""
UNDISTURBED = "undisturbed"
"""Folder of the run that nobody interrupts, which the steps of the others start from."""


def draw(root: Path) -> None:
    """Draw the embedded data set."""
    EmbeddedAD(root=root / "drawing").prepare_data()


def fit(root: Path) -> None:
    """Fit the default model."""
    seed_everything(0)
    pre_processor = VaeAttention.configure_pre_processor((128, 128))
    _fit(root, "fitting", VaeAttention(pre_processor=pre_processor, visualizer=False, latent_dim=32))


def train(root: Path) -> None:
    """Train an image VAE, from the last checkpoint if there is one."""
    checkpoints = sorted(_whole(root / "training", ".ckpt"), key=lambda file: file.stat().st_mtime)
    seed_everything(len(checkpoints))
    model = VaeAttention(vae="conv", latent_dim=8, widths=(8, 16), hidden_dim=64, visualizer=False)
    _fit(root, "training", model, max_epochs=EPOCHS, ckpt_path=checkpoints[-1] if checkpoints else None)


def export(root: Path) -> None:
    """Export the default model to PyTorch, over an earlier export if there is one."""
    (checkpoint,) = _whole(root.with_name(UNDISTURBED) / "fitting", ".ckpt")
    VaeAttention.load_from_checkpoint(checkpoint).to_torch(root / "exporting")


def report(root: Path) -> None:
    """Write a page and a picture per image with ``vae-attention explain``, over earlier ones if there are any."""
    source = root.with_name(UNDISTURBED)
    (checkpoint,) = _whole(source / "training", ".ckpt")
    given = ["--ckpt_path", checkpoint, "--data", source / "drawing" / "washer", "--limit", 1, "--latents", "top2"]
    folder = root / "reporting"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    explain([*map(str, given), "--output", "."])


STEPS: dict[str, Callable[[Path], None]] = {
    "drawing": draw,
    "fitting": fit,
    "training": train,
    "exporting": export,
    "reporting": report,
}
"""What is interrupted, in an order in which each has what it needs; each writes to the folder of its name."""
AFRESH = {"drawing", "training"}
"""Steps that would have nothing to do, or less, where they have been done before."""


def _fit(root: Path, step: str, model: VaeAttention, max_epochs: int = 1, ckpt_path: Path | None = None) -> None:
    engine = Engine(
        default_root_dir=root / step,
        accelerator="cpu",
        max_epochs=max_epochs,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    datamodule = EmbeddedAD(root=root.with_name(UNDISTURBED) / "drawing")
    engine.fit(model=model, datamodule=datamodule, ckpt_path=ckpt_path)


def _whole(folder: Path, *suffixes: str) -> list[Path]:
    """List the files of some kinds that somebody would take for whole: those of names that begin with a dot are not."""
    return [
        file
        for file in folder.rglob("*")
        if file.suffix in suffixes and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def read(root: Path, step: str) -> dict[str, object]:
    """Read every file that a step has left.

    Args:
        root: Folder of the run.
        step: The step.

    Returns:
        For each checkpoint, export, image or page its content, by its name relative to the step's folder.

    Raises:
        Exception: Whatever reading one of them raises, if it is not whole.
    """
    content: dict[str, object] = {}
    for file in _whole(root / step, ".ckpt", ".pt", ".png", ".html"):
        name = str(file.relative_to(root / step))
        if file.suffix == ".ckpt":
            content[name] = VaeAttention.load_from_checkpoint(file).state_dict()
        elif file.suffix == ".pt":
            content[name] = TorchInferencer(file, device="cpu").model.state_dict()
        else:
            content[name] = file.read_bytes()
    return content


def is_same(found: object, expected: object) -> bool:
    """Say whether two files' contents are the same, tensors to the last bit."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    return found == expected


def check(root: Path, step: str, expected: dict[str, object]) -> int:
    """Look at what an interrupted step has left.

    Args:
        root: Folder of the run.
        step: The step.
        expected: What :func:`read` returns of a run that nobody interrupted.

    Returns:
        How many files are there. Of a training, the checkpoints of its earlier epochs are read only; once it is
        resumed, the last must be as expected.

    Raises:
        AssertionError: If one of them is not whole, naming it.
    """
    found = read(root, step)
    if step == "drawing" and found and found.keys() != expected.keys():
        msg = f"{len(expected.keys() - found.keys())} of {len(expected)} drawn images are missing in {root / step}."
        raise AssertionError(msg)
    if step == "training":
        done = do(step, root)
        if not done:
            msg = f"The training in {root / step} could not be resumed."
            raise AssertionError(msg)
        last = max(_whole(root / step, ".ckpt"), key=lambda file: file.stat().st_mtime)
        resumed = VaeAttention.load_from_checkpoint(last).state_dict()
        compared = [(str(last), resumed, next(iter(expected.values())))]
    else:
        # Each fit has a folder of its own.
        first = next(iter(expected.values()))
        compared = [(name, content, expected.get(name, first)) for name, content in found.items()]
    for name, content, wanted in compared:
        if not is_same(content, wanted):
            msg = f"{name} of {root / step} is not that of a run that was not interrupted."
            raise AssertionError(msg)
    return len(found)


def do(step: str, root: Path, seconds: float | None = None) -> bool:
    """Do a step in a process of its own, and kill it after some seconds, if any are given.

    Returns:
        Whether it ended well by itself.
    """
    process = multiprocessing.get_context("fork").Process(target=STEPS[step], args=(root,))
    process.start()
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    return process.exitcode == 0


def main(arguments: list[str] | None = None) -> int:
    """Interrupt, check, print what was found and write ``interruption.json``.

    Args:
        arguments: Those of the command line by default.

    Returns:
        Exit code; a fault is an exception.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30, help="how often to kill each step (30)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="which steps (all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (0)")
    parser.add_argument("--temporary", type=Path, help="folder for temporary files, such as /dev/shm")
    parser.add_argument("--output", type=Path, default=Path("results/interruption"), help="folder")
    parsed = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    # The export is our own.
    os.environ["TRUST_REMOTE_CODE"] = "1"
    if parsed.temporary:
        tempfile.tempdir = str(parsed.temporary.resolve())
    output = parsed.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    moments = random.Random(parsed.seed)  # noqa: S311 - nothing secret
    result: dict[str, dict[str, float]] = {}
    for step in STEPS:
        whole, root, seconds = output / UNDISTURBED, output / "interrupted", 0.0
        # The last time counts: libraries look around in the first.
        folders = [whole, output / "timed"]
        if step in parsed.steps and step not in AFRESH:
            # So that every kill has something to damage.
            folders.insert(1, root)
        for folder in folders:
            started = time.monotonic()
            if not do(step, folder):
                msg = f"{step} failed without an interruption."
                raise RuntimeError(msg)
            seconds = time.monotonic() - started
        if step not in parsed.steps:
            continue
        expected, counts = read(whole, step), Counter[str]()
        for number in range(parsed.times):
            if step in AFRESH:
                shutil.rmtree(root / step, ignore_errors=True)
            counts["done before its kill" if do(step, root, moments.uniform(0, seconds)) else "killed"] += 1
            counts["files found whole"] += check(root, step, expected)
            print(f"{step}: {number + 1} of {parsed.times}, {dict(counts)}", flush=True)
        hidden = [file for file in (root / step).rglob(".*") if not file.is_dir()]
        result[step] = {**counts, "seconds undisturbed": seconds, "temporary files left": len(hidden)}
    write_json(output / "interruption.json", {**result, "machine": describe_machine()})
    for step, found in result.items():
        print(f"{step}: {found}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Memory over time: ``python docs/studies/memory.py``.

Predicts many times in one process, through anomalib's TorchInferencer, and fits many times in a row, through its
engine, on drawn images; and looks at the memory of the process after each.
"""

import argparse
import gc
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from lightning import seed_everything

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.common.atomic_files import write_json
from anomalib_vae_attention.common.machine import describe_machine

WARM_UP = 0.2
"""Share of the repetitions after which memory is looked at: libraries fill their caches in the first."""


def resident_mib() -> float:
    """Return the memory that this process holds, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def repeat(name: str, times: int, action: Callable[[], object]) -> dict[str, float | list[float]]:
    """Do something many times and look at the memory after each.

    Args:
        name: What it is, to be printed.
        times: How many times, 10 or more.
        action: What to do.

    Returns:
        ``memory_mib`` at the end of each tenth of the times, ``growth_kib`` per action after the warm-up (slope of the
        least-squares line), its standard error ``growth_error_kib``, and ``seconds``.
    """
    memory, started = [], time.monotonic()
    for index in range(times):
        action()
        memory.append(resident_mib())
        if (index + 1) % (times // 10) == 0:
            print(f"{name}: {index + 1} of {times}, {memory[-1]:.1f} MiB", flush=True)
    counted = np.array(memory[int(WARM_UP * times) :]) * 1024
    (slope, _), covariance = np.polyfit(np.arange(len(counted)), counted, 1, cov=True)
    return {
        "memory_mib": [round(value, 1) for value in memory[times // 10 - 1 :: times // 10]],
        "growth_kib": float(slope),
        "growth_error_kib": float(covariance[0, 0] ** 0.5),
        "seconds": time.monotonic() - started,
    }


def main(arguments: list[str] | None = None) -> int:
    """Predict, fit, print and write ``memory.json``.

    Args:
        arguments: Those of the command line by default.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=1000, help="number of predictions (1000)")
    parser.add_argument("--fits", type=int, default=100, help="number of fits (100)")
    parser.add_argument("--side", type=int, default=64, help="height and width of the images in pixels (64)")
    parser.add_argument("--output", type=Path, default=Path("results/memory"), help="folder")
    parsed = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    # The export is our own.
    os.environ["TRUST_REMOTE_CODE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        datamodule = EmbeddedAD(root=Path(scratch) / "data")
        datamodule.prepare_data()

        def fit() -> VaeAttention:
            seed_everything(0)
            pre_processor = VaeAttention.configure_pre_processor((parsed.side, parsed.side))
            model = VaeAttention(pre_processor=pre_processor, visualizer=False)
            engine = Engine(
                default_root_dir=Path(scratch) / "results",
                accelerator="cpu",
                # A log line less per fit, and no files to fill the disk with.
                enable_checkpointing=False,
                barebones=True,
                limit_val_batches=0,
            )
            engine.fit(model=model, train_dataloaders=datamodule.train_dataloader())
            # Trainer and model refer to each other; Python frees such circles when it sees fit, not at once.
            gc.collect()
            return model

        datamodule.setup()
        inferencer = TorchInferencer(fit().eval().to_torch(scratch), device="cpu")
        files = list(datamodule.test_data.samples["image_path"])
        numbers = iter(range(parsed.predictions))
        results = {
            "predictions": repeat(
                "Predictions",
                parsed.predictions,
                lambda: inferencer.predict(files[next(numbers) % len(files)]),
            ),
            "fits": repeat("Fits", parsed.fits, fit),
        }
    write_json(parsed.output / "memory.json", {**results, "machine": describe_machine()})
    for name, result in results.items():
        print(f"{name}: {result['growth_kib']:.2f} KiB each, standard error {result['growth_error_kib']:.2f}")
    print(f"Written to {parsed.output.resolve()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

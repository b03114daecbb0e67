"""Starting a campaign on a GPU: models, images and worker processes."""

import os
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from anomalib_vae_attention.dsprites.drawing import IMAGE_BYTES
from anomalib_vae_attention.dsprites.store import IMAGES

from .arms import Arm, Schedule, make_run
from .campaign import Run, StackedCampaign, finished_steps
from .scores import Scorer


def run_side_by_side(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    schedule: Schedule,
    output: Path,
    more: list[str],
    minutes: float | None = None,
    device: str = "cuda",
) -> list[Path]:
    """Train all runs side by side on a GPU, and go on where an earlier call was stopped.

    Runs that are done are left alone, so that other seeds can be added to a folder.

    Args:
        arms: The models.
        seeds: Seeds of the runs.
        schedule: When to stop, to score and to save.
        output: Folder of all runs; each has a folder named after its arm and seed.
        more: Further arguments for every run.
        minutes: Stop training after this long, counted from the call.
        device: Which GPU; on a processor it works, too, but is of no use.

    Returns:
        The folders of all runs.

    Raises:
        ValueError: If there is no GPU, the arguments of an arm are wrong, arms have other data or batches than each
            other, or what was started in the folder are other runs.
    """
    start = time.monotonic()
    if device == "cuda" and not torch.cuda.is_available():
        msg = "--accelerator gpu: PyTorch finds no CUDA device; leave it out to run on processors"
        raise ValueError(msg)
    folders = [output / f"{arm.name}-{seed}" for arm, seed in product(arms, seeds)]
    to_do = [folder for folder in folders if finished_steps(folder) < schedule.steps]
    if not to_do:
        return folders
    torch.set_float32_matmul_precision("high")
    runs, shared = [], set()
    for (arm, seed), folder in zip(product(arms, seeds), folders, strict=True):
        if folder in to_do:
            cli = make_run(arm, seed, folder, more)
            runs.append(Run(folder, seed, cli.model))
            shared.add((cli.datamodule.data.file, cli.datamodule.batch_size))
    if len(shared) > 1:
        msg = f"runs side by side share their data and the size of their batches, but these arms have {shared}"
        raise ValueError(msg)
    ((file, batch_size),) = shared
    scorer = Scorer(max(1, (os.cpu_count() or 1) - 2))
    bits = np.fromfile(file, np.uint8, IMAGES * IMAGE_BYTES).reshape(IMAGES, IMAGE_BYTES)
    campaign = StackedCampaign(runs, torch.from_numpy(bits).to(device), output, scorer, batch_size)
    if campaign.resume(schedule.steps):
        print(f"going on after {campaign.steps} steps")
    campaign.fit(schedule, lambda: minutes is not None and time.monotonic() - start > 60 * minutes)
    campaign.save_weights()
    scorer.close()
    return folders

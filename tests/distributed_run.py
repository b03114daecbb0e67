"""Fit and predict on two processes; Lightning starts this script again for the second. Run by test_distributed.py."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from support import folder, make_engine, small_model

from anomalib_vae_attention import NormalQuantile


class Die(Callback):
    """Kills one of the processes in the middle of training."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, _trainer: Trainer, _module: LightningModule, _batch: object, index: int) -> None:
        """Kill this process."""
        if rank_zero_only.rank == self.rank and index == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Fit for each reference given, save the states, and predict a folder; or die."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--references", nargs="+", default=["exemplars"])
    parser.add_argument("--quantile", action="store_true")
    parser.add_argument("--die", type=int, help="rank of the process that dies")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    for reference in parsed.references:
        # Processes that are up already would make anomalib's folder of the second run at the same moment.
        time.sleep(rank_zero_only.rank)
        engine = make_engine(
            parsed.output / reference,
            devices=2,
            strategy="ddp",
            callbacks=[] if parsed.die is None else [Die(parsed.die)],
        )
        # Features are kept for the one and read again for the other.
        options = {"reference": reference, "cache_features": reference == "exemplars", "visualizer": True}
        if parsed.quantile:
            options["post_processor"] = NormalQuantile(0.4, held_out=0.3)
        model = small_model(**options)
        datamodule = folder(parsed.data, normal_test_dir="good", train_batch_size=2)
        engine.fit(model=model, datamodule=datamodule)
        torch.save(model.state_dict(), parsed.output / f"{reference}-{rank_zero_only.rank}.pt")
    batches = engine.predict(model=model, data_path=parsed.data / "good", ckpt_path=engine.best_model_path)
    names = [Path(path).name for batch in batches for path in batch.image_path]
    (parsed.output / f"predicted-{rank_zero_only.rank}.txt").write_text("\n".join(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())

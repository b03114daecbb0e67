"""Fit and predict on several processes; Lightning starts this script again for each. Run by test_distributed.py."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from support import folder, make_engine, small_model

from anomalib_vae_attention import NormalQuantile, VaeAttention


class Die(Callback):
    """Kills one of the processes in the middle of training."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, _trainer: Trainer, _module: LightningModule, _batch: object, index: int) -> None:
        """Kill this process."""
        if rank_zero_only.rank == self.rank and index == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def make_ddp_engine(root: Path, processes: int = 2, **options: object) -> Engine:
    """Make an engine of several processes."""
    # Processes that are up already would make anomalib's folder of the second run at the same moment.
    time.sleep(rank_zero_only.rank)
    return make_engine(root, devices=processes, strategy="ddp", **options)


def resume(data: Path, output: Path) -> None:
    """Train an image VAE at once, and with another seed from a checkpoint on; save the states."""
    checkpoint = None
    for name, epochs, seed in (("whole", 3, 0), ("stopped", 2, 0), ("resumed", 3, 1)):
        seed_everything(seed)
        model = VaeAttention("conv", input_size=(24, 30), latent_dim=4, widths=(8, 12), hidden_dim=16, visualizer=False)
        engine = make_ddp_engine(output / name, max_epochs=epochs)
        datamodule = folder(data, normal_test_dir="good", train_batch_size=2)
        engine.fit(model=model, datamodule=datamodule, ckpt_path=checkpoint if name == "resumed" else None)
        checkpoint = engine.best_model_path
        torch.save(model.model.state_dict(), output / f"{name}-{rank_zero_only.rank}.pt")


def main() -> int:
    """Fit for each reference given, save the states, and predict a folder; or die; or resume."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--references", nargs="+", default=["exemplars"])
    parser.add_argument("--quantile", action="store_true")
    parser.add_argument("--die", type=int, help="rank of the process that dies")
    parser.add_argument("--resume", action="store_true")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    if parsed.resume:
        resume(parsed.data, parsed.output)
        return 0
    for reference in parsed.references:
        callbacks = [] if parsed.die is None else [Die(parsed.die)]
        engine = make_ddp_engine(parsed.output / reference, parsed.processes, callbacks=callbacks)
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

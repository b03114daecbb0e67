"""What several test modules call; a conftest.py in a subfolder would hide one above it from imports."""

import os
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from anomalib.data import Folder, ImageBatch
from anomalib.engine import Engine
from hypothesis import HealthCheck
from PIL import Image

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.reference import REFERENCES, Exemplars, LeftOut, NormalReference
from anomalib_vae_attention.reference.byte_latents import KeptLatents
from anomalib_vae_attention.reference.place_prior import PRIOR_STEP
from anomalib_vae_attention.vae import Posterior

SIZE = (64, 64)
CASES = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
"""Settings of hypothesis: the same cases in every run; fixtures are of the module and never changed."""
CHOICES = [{"reference": name} for name in REFERENCES]
"""Arguments of the model that go through the whole matrix of tests, the default first."""
SMALL_IMAGE_VAES = {
    "resnet18": {"vae": "resnet18", "input_size": (32, 32), "latent_dim": 4},
    "conv": {"vae": "conv", "input_size": (24, 30), "latent_dim": 4, "widths": (8, 12), "hidden_dim": 16},
}
"""Arguments of image VAEs that take a second to train."""


class Fitted(NamedTuple):
    """A model after one fit, the engine that fitted it, and its checkpoint."""

    model: VaeAttention
    engine: Engine
    checkpoint: Path


def make_engine(root: Path, **options: object) -> Engine:
    """Make anomalib's engine, quiet, writing below a folder."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return Engine(default_root_dir=root, **{**quiet, **options})


def small_model(size: tuple[int, int] = SIZE, **options: object) -> VaeAttention:
    """Make a model for small images, so that a fit takes a second."""
    pre_processor = VaeAttention.configure_pre_processor(size)
    return VaeAttention(**{"pre_processor": pre_processor, "visualizer": False, "latent_dim": 32, **options})


def small_image_model(vae: str = "conv", **options: object) -> VaeAttention:
    """Make a small model with an image VAE."""
    return VaeAttention(**{"visualizer": False, **SMALL_IMAGE_VAES.get(vae, {"vae": vae}), **options})


def scores(model: VaeAttention, datamodule: EmbeddedAD) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the raw scores and maps of all test images."""
    model.eval()
    with torch.no_grad():
        outputs = [
            model.model(model.pre_processor(batch.image)) if model.pre_processor else model.model(batch.image)
            for batch in datamodule.test_dataloader()
        ]
    return torch.cat([out.pred_score for out in outputs]), torch.cat([out.anomaly_map for out in outputs])


def folder(root: Path, **options: object) -> Folder:
    """Read a folder of images, ``good`` to train on and ``bad`` to test on."""
    return Folder(
        name="given",
        root=root,
        normal_dir="good",
        **{"abnormal_dir": "bad", "num_workers": 0, "train_batch_size": 4, "eval_batch_size": 4, **options},
    )


def write_images(root: Path, good: int = 6, bad: int = 2, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> None:
    """Write noise as PNG files of a mode, darker in the good images."""
    random = np.random.default_rng(0)
    channels = len(mode) if mode != "L" else 0
    for name, count, offset in (("good", good, 0), ("bad", bad, 100)):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(offset, offset + 100, (*size, channels) if channels else size, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


def keep(latents: torch.Tensor) -> KeptLatents:
    """Keep latents ``(N, d, h, w)``."""
    kept = KeptLatents()
    for mean in latents:
        kept.append(mean)
    return kept


def collect(normal: NormalReference, mean: torch.Tensor, variance: torch.Tensor, batch: int = 3) -> LeftOut:
    """Build a reference from posteriors, in batches, and return its energies of left-out normal images."""
    normal.start()
    for some in mean.split(batch):
        normal.update(Posterior(some, variance))
    return normal.finish()


def run_command(folder: Path, *command: str | Path) -> str:
    """Run a command in a folder, without a network, demand that it ends well, and return what it printed."""
    process = subprocess.run(
        command,
        cwd=folder,
        # One thread, because two run at a time.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def run_anomalib(folder: Path, *arguments: str | Path) -> str:
    """Run, likewise, the command ``anomalib`` that is installed beside this Python."""
    return run_command(folder, Path(sys.executable).with_name("anomalib"), *arguments)


@contextmanager
def clear_error(*kinds: type[Exception], names: str) -> Generator[None, None, None]:
    """Allow an error of certain kinds, if its message names what it is about."""
    try:
        yield
    except kinds as error:
        if not re.search(names, str(error)):
            raise


def is_sound(model: VaeAttention, image: torch.Tensor) -> None:
    """Demand scores and maps of an image batch that are numbers in [0, 1]."""
    with torch.no_grad():
        prediction = model(image)
    assert prediction.pred_score.shape == (len(image),)
    assert prediction.anomaly_map.shape == (len(image), 1, *SIZE)
    for tensor in (prediction.pred_score, prediction.anomaly_map):
        assert bool(((tensor >= 0) & (tensor <= 1)).all())


def make_batches(factor: float, offset: float) -> list[ImageBatch]:
    """Make two batches of random predictions that tend towards the truth, scaled and shifted."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(2):
        mask = torch.zeros(4, 16, 16, dtype=torch.bool)
        mask[:2, 4:9, 4:9] = True
        maps = torch.rand(4, 1, 16, 16, generator=generator) + 0.5 * mask[:, None]
        kinds = ["crack", "hole", "good", "good"]
        batches.append(
            ImageBatch(
                image=torch.zeros(4, 3, 16, 16),
                gt_label=mask.flatten(1).any(1),
                gt_mask=mask,
                # As PaDiM has it, with an axis too many.
                pred_score=(offset + factor * maps.amax(dim=(-2, -1))),
                anomaly_map=offset + factor * maps,
                image_path=[f"/data/test/{kind}/{number}{index}.png" for index, kind in enumerate(kinds)],
            )
        )
    return batches


def small_run(sprites_root: Path) -> list[str]:
    """List arguments of ``vae-attention dsprites fit`` that make a run small."""
    options = {
        "data.root": sprites_root,
        "data.batch_size": 4,
        "data.batches_per_epoch": 2,
        "data.test_batches": 1,
        "scores.every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.log_every_n_steps": 1,
    }
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def stored(normal: Exemplars) -> torch.Tensor:
    """Return the exemplars of each cell that a reference holds, without their levels, of shape ``(N, h, w, d)``."""
    latent_dim, height, width = normal.centre.shape
    whitened = (normal.bank.double() * normal.step[:, None]).permute(2, 0, 1)
    return (whitened.view(-1, height, width, latent_dim) / normal.scale + normal.centre.permute(1, 2, 0))[..., :-1]


def shared(normal: Exemplars) -> torch.Tensor:
    """Return the exemplars that all cells share, without their levels, of shape ``(K, d)``."""
    return ((normal.common.T.double() + normal.common_centre) / normal.scale)[:, :-1]


def prior_of(normal: Exemplars) -> torch.Tensor:
    """Return the prior of the shared exemplars at each cell, of shape ``(h, w, K)``."""
    return (-PRIOR_STEP * normal.prior.double()).exp().view(*normal.grid_size, -1)

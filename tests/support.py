"""What several test modules call; a conftest.py in a subfolder would hide one above it from imports."""

from pathlib import Path
from typing import NamedTuple

from anomalib.engine import Engine

from anomalib_vae_attention import VaeAttention


class Fitted(NamedTuple):
    """A model after one fit, the engine that fitted it, and its checkpoint."""

    model: VaeAttention
    engine: Engine
    checkpoint: Path


def make_engine(root: Path, **options: object) -> Engine:
    """Make anomalib's engine, quiet, writing below a folder."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return Engine(default_root_dir=root, **{**quiet, **options})

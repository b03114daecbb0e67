"""The config files and the command line do what the documentation says, each in a process and a folder of its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from anomalib_vae_attention import EmbeddedAD

CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART, MVTEC, FOLDER = (CONFIGS / f"{name}.yaml" for name in ("quickstart", "mvtec", "folder"))
METRICS = ("image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score")

# An iterator's next item is drawn by whoever asks first, so that the processes can be started before they are needed.
Training = Iterator[tuple[Path, str]]


def run(directory: Path, *command: str) -> str:
    """Run a command in a folder, without a network, and return all it has printed; it must end well."""
    process = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def anomalib(directory: Path, *arguments: str | Path) -> str:
    """Run anomalib's command in a folder."""
    command = shutil.which("anomalib", path=Path(sys.executable).parent)
    assert command, "anomalib's command is not installed beside this Python"
    return run(directory, command, *map(str, arguments))


def results(directory: Path) -> tuple[list[Path], list[Path]]:
    """Return the checkpoints and the heat-map images of the one run in a folder."""
    found = directory / "results" / "VaeAttention"
    files = [file for file in found.rglob("*") if file.is_file() and "latest" not in file.relative_to(found).parts]
    return [file for file in files if file.suffix == ".ckpt"], [file for file in files if file.suffix == ".png"]


@pytest.fixture(scope="module")
def literal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the literal command in an empty folder; return the folder and the output."""
    directory = tmp_path_factory.mktemp("literal")
    return directory, anomalib(directory, "train", "--model", "vae_attention")

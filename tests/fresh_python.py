"""A fresh Python that finds the plug-in as any program would: what it imports first decides how the plug-in works."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

PACKAGE = "anomalib_vae_attention"

INSTALLED = pytest.mark.skipif(
    PACKAGE not in {entry_point.name for entry_point in entry_points(group="torch.backends")},
    reason=f"{PACKAGE} is not installed: no such entry point in torch.backends",
)
"""For modules of tests that need the entry point."""


def run_python(directory: Path, script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh Python, away from the checkout, and demand that it got to its end.

    Args:
        directory (Path): Working directory of the process; its home is there too.
        script (str): Code to run.
        *options (str): Options of the interpreter.
        **environment (str): Environment variables to set besides the inherited ones.

    Returns:
        subprocess.CompletedProcess[str]: The process, with its output.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    process = subprocess.run(
        [sys.executable, *options, "-c", f"{script}\nprint('reached the end')"],
        cwd=directory,
        env={**inherited, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("reached the end\n"), process.stdout
    return process

"""Nothing is fetched, and names in reports are text."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomalib_vae_attention.benchmark.plan import Cell
from anomalib_vae_attention.benchmark.report import make_tables, write_results

OFFLINE = """
import os, socket
os.environ.pop("HF_HUB_OFFLINE", None)
asked = []
def refuse(*arguments, **options):
    asked.append(arguments)
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import torch
torch.set_num_threads(1)
from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib.engine import Engine
from anomalib.models import get_model
model = get_model("vae_attention", pre_processor=VaeAttention.configure_pre_processor((64, 64)), visualizer=False)
data = EmbeddedAD(root="data")
engine = Engine(default_root_dir="results", accelerator="cpu", enable_progress_bar=False, limit_val_batches=1)
engine.fit(model=model, datamodule=data)
engine.predict(model=model, datamodule=data)
assert not asked, asked
"""


def test_nothing_is_fetched(tmp_path: Path) -> None:
    """Import, construction, data, fit and prediction open no connection and ask for no address."""
    command = [sys.executable, "-c", OFFLINE]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a&b<i>"])
def test_names_in_reports_are_text(name: str, tmp_path: Path) -> None:
    """Category, model, file and error with tags in them are shown, not run."""
    cell = Cell(name, str(tmp_path), "vae_attention", 0, "backbone", ("layer",), 32, keep=True, export=False)
    folder = tmp_path / "cells" / cell.key
    folder.mkdir(parents=True)
    image = np.zeros((1, 8, 8, 3), np.uint8)
    maps = {"map": np.zeros((1, 8, 8)), "mask": np.zeros((1, 8, 8), bool), "range": np.array([0.0, 1.0])}
    np.savez(folder / "examples.npz", path=np.array([f"bad/{name}.png"]), image=image, **maps)
    failed = {"status": "failed", "error": name, "log": name}
    tables = make_tables([cell], [failed], [])
    settings = {"backbone": name, "layers": [name], "image_size": [32], "seeds": [0], "threads": 1}
    write_results(tmp_path, [cell], tables, {"command": name, "settings": settings})
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert name not in html
    assert html.count("&lt;") >= 4
    assert "<script>alert" not in html
    assert "<img src=x" not in html

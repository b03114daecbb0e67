"""Latencies are measured in turns; what fails is said."""

from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.models.components import AnomalibModule

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.benchmark import latency, runtimes
from anomalib_vae_attention.benchmark.exporting import export_onnx, export_openvino, find_export
from anomalib_vae_attention.benchmark.latency import CALLS, measure
from anomalib_vae_attention.benchmark.models import BareBackbone
from anomalib_vae_attention.benchmark.plan import BACKBONE, Cell
from anomalib_vae_attention.common.atomic_files import read_json, write_json


def test_models_take_turns_and_the_first_round_warms_up() -> None:
    order: list[str] = []
    results = measure({name: lambda _, name=name: order.append(name) for name in "abc"}, rounds=2, budget=10)
    assert all(results[name]["calls"] == 2 * CALLS for name in "abc")
    assert all(results[name]["q25_ms"] <= results[name]["median_ms"] <= results[name]["q75_ms"] for name in "abc")
    turn = 1 + CALLS
    turns = [order[start] for start in range(0, len(order), turn)]
    assert all(len(set(order[start : start + turn])) == 1 for start in range(0, len(order), turn))
    assert [sorted(turns[start : start + 3]) for start in (0, 3, 6)] == [list("abc")] * 3


def test_a_failing_model_does_not_stop_the_others() -> None:
    def fail(number: int) -> None:
        msg = f"call {number}"
        raise MemoryError(msg)

    results = measure({"bad": fail, "good": lambda _: None}, rounds=1, budget=10)
    assert results["bad"] == {"error": "MemoryError: call -2"}
    assert results["good"]["calls"] == CALLS


def test_slow_models_have_fewer_turns() -> None:
    seconds = iter(range(0, 1000, 2))
    results = measure({"slow": lambda _: None}, rounds=50, budget=5, clock=lambda: next(seconds))
    assert results["slow"] == {"median_ms": 2000, "q25_ms": 2000, "q75_ms": 2000, "calls": CALLS}


REFUSALS = ("this processor has no bfloat16", "PyTorch finds no CUDA device")
"""What a runtime may say that this machine lacks the hardware for."""


class OneConvolution(torch.nn.Module):
    """A backbone that is exported in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [self.convolution(image)]


@pytest.fixture(scope="module")
def model() -> BareBackbone:
    """Make a small bare backbone, for images resized to 64x64."""
    torch.manual_seed(0)
    return BareBackbone(OneConvolution(), VaeAttention.configure_pre_processor((64, 64))).eval()


@pytest.fixture(scope="module")
def exported(model: BareBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export it, as its cell does."""
    folder = tmp_path_factory.mktemp("cell")
    cell = Cell("w", "/data/w", BACKBONE, 0, "net", ("convolution",), 64, keep=True, export=True)
    write_json(folder / "cell.json", asdict(cell))
    (onnx,) = export_onnx(model, folder, (96, 96), (1, 16))
    export_openvino(onnx)
    return folder


@pytest.fixture
def cell_folder(exported: Path, model: BareBackbone, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of its cell, and load it for the eager runtime."""
    monkeypatch.setattr(runtimes, "load_model", lambda *_: deepcopy(model))
    return exported


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino", "openvino-bf16", "cuda-graph"])
def test_every_runtime_runs_the_whole_graph(
    runtime: str, cell_folder: Path, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 1)
    wanted = {
        "runtime": runtime,
        "models": {BACKBONE: str(cell_folder), "missing": str(tmp_path)},
        "images": sorted(str(file) for file in tiny_root.glob("parts/washer/test/*/*.png")),
        "input_size": [96, 96],
        "batches": [1, 16],
        "threads": 1,
    }
    write_json(tmp_path / "wanted.json", wanted)
    latency.run(tmp_path / "wanted.json")
    results = read_json(tmp_path / "result.json")["latency"]
    assert set(results[BACKBONE]) >= {"batch 1", "batch 16"}
    for way, summary in results[BACKBONE].items():
        assert summary.get("median_ms", 0) > 0 or summary["error"].startswith(REFUSALS), way
    assert all("error" in summary for summary in results["missing"].values())


def test_runtimes_agree(cell_folder: Path) -> None:
    cell = latency.read_cell(read_json(cell_folder / "cell.json"))
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    run = {name: runtimes.RUNTIMES[name](cell, cell_folder, (2, 96, 96), 1) for name in list(runtimes.RUNTIMES)[:3]}
    expected = run["eager"](images)[0].numpy()
    assert expected.shape == (2, 4, 31, 31)
    assert np.allclose(next(iter(run["onnxruntime"](images).values())), expected, atol=1e-3)
    assert np.allclose(next(iter(run["openvino"](images).values())), expected, atol=1e-3)


def test_a_model_with_a_fixed_batch_is_exported_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int | None] = []

    class Fixed(AnomalibModule):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def to_onnx(self, root: Path, dynamic_shapes: tuple | None = None, **_: object) -> Path:
            batches.append(dynamic_shapes[0][0] if dynamic_shapes else None)
            file = root / "weights" / "onnx" / "model.onnx"
            file.parent.mkdir(parents=True)
            file.touch()
            return file

    monkeypatch.setattr("anomalib_vae_attention.benchmark.exporting._takes_any_batch", lambda _: False)
    monkeypatch.setattr(Fixed, "__abstractmethods__", frozenset())
    assert not isinstance(Fixed(), BareBackbone)
    export_onnx(Fixed(), tmp_path, (8, 8), (1, 16))
    assert batches == [None, 1, 16]
    assert find_export(tmp_path, "onnx", 16).parts[-4] == "batch-16"
    with pytest.raises(FileNotFoundError, match="to onnx for 2 images"):
        find_export(tmp_path, "onnx", 2)

"""anomalib's own models get the packaged weights, and stock anomalib's benchmark runs on them."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from anomalib.models import Padim
from anomalib.pipelines.benchmark.generator import BenchmarkJobGenerator

from anomalib_vae_attention.backbone import PACKAGED_BACKBONE, WEIGHTS_PACKAGES, Backbone
from anomalib_vae_attention.benchmark import weights
from anomalib_vae_attention.torch_model import DEFAULT_LAYERS

CONFIG = Path(__file__).parents[2] / "configs" / "benchmark.yaml"


@pytest.mark.parametrize("name", WEIGHTS_PACKAGES)
def test_padim_has_the_backbone_that_we_have(name: str, hub: Path) -> None:
    pytest.importorskip(WEIGHTS_PACKAGES[name].module, reason=f"no weights of {name}: {WEIGHTS_PACKAGES[name].install}")
    file = weights.write_cache(hub, name)
    ours = Backbone(name, DEFAULT_LAYERS)
    theirs = Padim(backbone=name, layers=list(DEFAULT_LAYERS), n_features=10)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = theirs.model.feature_extractor(image)
        for layer, expected in zip(DEFAULT_LAYERS, ours(image), strict=True):
            # Ours runs in another memory order, which rounds otherwise.
            torch.testing.assert_close(features[layer], expected, rtol=1e-4, atol=1e-4)
    assert weights.write_cache(hub, name) == file
    assert list(file.parents[1].glob("*/model.safetensors")) == [file]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "blocks.1", "blocks.99"], "blocks.99"),
        (["--models", "vae_attention:none"], "the reference in 'vae_attention:none' must be one of"),
    ],
)
def test_what_does_not_exist_is_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weights.main([str(tmp_path), "--models", "vae_attention:gaussian-uncached", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def stock(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Lay the tiny category out as MVTec AD's bottle; return the benchmark's part of the config."""
    source, bottle = tiny_root / "parts" / "washer", tmp_path / "datasets" / "MVTecAD" / "bottle"
    shutil.copytree(source, bottle)
    for mask in bottle.glob("ground_truth/*/*.png"):
        mask.rename(mask.with_name(f"{mask.stem.removesuffix('_mask')}_mask.png"))
    monkeypatch.chdir(tmp_path)
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["benchmark"]


@pytest.mark.usefixtures("hub")
def test_stock_benchmark_makes_all_three_and_runs_ours(stock: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stock["data"]["init_args"]["num_workers"] = 0
    jobs = list(BenchmarkJobGenerator("cpu").generate_jobs(stock, None))
    assert [type(job.model).__name__ for job in jobs] == ["VaeAttention", "Patchcore", "Padim"]
    # anomalib's table takes the entries of the first row for those of all.
    assert len({tuple(job.flat_cfg) for job in jobs}) == 1
    assert all(job.model.hparams["backbone"] == PACKAGED_BACKBONE for job in jobs)
    monkeypatch.setattr("anomalib.pipelines.benchmark.job.logger", SimpleNamespace(info=lambda _: None))
    row = jobs[0].run()
    assert 0 <= row["pixel_AUROC"] <= 1
    table = jobs[0].collect([row, {**row, **jobs[1].flat_cfg}, {**row, **jobs[2].flat_cfg}])
    assert len(table) == 3

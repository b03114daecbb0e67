"""What is compared: names of models, categories, cells."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from anomalib_vae_attention.backbone import PACKAGED_BACKBONE
from anomalib_vae_attention.benchmark.command import RUNTIMES as OFFERED
from anomalib_vae_attention.benchmark.command import make_parser
from anomalib_vae_attention.benchmark.plan import BACKBONE, GPU_RUNTIMES, Cell, canonical_name, plan_cells, read_model
from anomalib_vae_attention.benchmark.runtimes import RUNTIMES
from anomalib_vae_attention.torch_model import DEFAULT_LAYERS

CELL = Cell("a/b", "/data/a/b", "padim", 0, "net", ("x", "y"), 256, keep=True, export=True)


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("vae_attention", "vae_attention"),
        ("vae_attention:exemplars", "vae_attention"),
        ("vae_attention:gaussian", "vae_attention:gaussian"),
        ("vae_attention:exemplars-uncached", "vae_attention:exemplars-uncached"),
        ("patchcore:0.10", "patchcore"),
        ("patchcore:1e-2", "patchcore:0.01"),
        ("patchcore:.1-fast", "patchcore:0.1-fast"),
        ("padim:100", "padim"),
        ("stfpm", "stfpm"),
        ("stfpm:020", "stfpm:20"),
    ],
)
def test_one_name_for_every_model(given: str, canonical: str) -> None:
    assert canonical_name(given) == canonical
    assert read_model(canonical) == read_model(given)


@pytest.mark.parametrize(
    "name",
    [
        "st-fpm",
        "stfpm:0",
        "patchcore:0",
        "patchcore:x",
        "patchcore:-fast",
        "padim:0",
        "padim:1.5",
        "",
    ],
)
def test_what_is_no_model_is_named_in_the_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"models: '.*' (is not available; write vae_attention|has no such variant)"):
        canonical_name(name)


def test_the_backbone_runs_once_a_category_and_only_for_latencies() -> None:
    categories = {"a": Path("/data/a"), "b": Path("/data/b")}
    models = ["vae_attention", "padim:100"]
    cells = plan_cells(categories, models, [3, 4, 3], replace(CELL, export=False))
    names = [(cell.seed, cell.category, cell.model) for cell in cells]
    first = [(3, category, model) for category in "ab" for model in (BACKBONE, "vae_attention", "padim")]
    assert names == [*first, *[(4, category, model) for _, category, model in first if model != BACKBONE]]
    assert [cell.keep for cell in cells] == [cell.seed == 3 for cell in cells]
    assert not any(cell.export for cell in cells)
    without = plan_cells(categories, models, [3, 4], replace(CELL, keep=False))
    assert len(without) == 8
    assert not any(cell.keep or cell.export or cell.model == BACKBONE for cell in without)


def test_a_model_has_layers_of_its_own() -> None:
    names = ["padim", "padim@y+x", "padim:50@y", "vae_attention"]
    cells = plan_cells({"a": Path("/data/a")}, names, [0], replace(CELL, keep=False))
    # The second one's are those of all.
    assert [cell.label for cell in cells] == ["padim", "padim:50@y", "vae_attention"]
    assert cells[1].layers == ("y",)
    alone = plan_cells({"a": Path("/data/a")}, ["padim:50"], [0], replace(CELL, keep=False, layers=("y",)))
    assert (alone[0].label, alone[0].key) == ("padim:50", cells[1].key)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"image_size": 64}, {"image_size": (256, 64)}, {"folder": "/other/a/b"}, {"export": False}]
)
def test_another_cell_has_another_folder(change: dict[str, object]) -> None:
    assert replace(CELL, **change).key != CELL.key
    assert "/" not in CELL.key
    assert ":" not in replace(CELL, model="patchcore:0.01").key


def test_defaults_of_the_command_are_those_of_the_model() -> None:
    defaults = make_parser().parse_args(["--data_root", ".", "--categories", "a"])
    assert defaults.backbone == PACKAGED_BACKBONE
    assert tuple(defaults.layers) == DEFAULT_LAYERS
    assert (*OFFERED, *GPU_RUNTIMES) == tuple(RUNTIMES)


def test_planning_imports_no_torch() -> None:
    """The peak memory of a cell's process is never counted lower than that of the process that started it."""
    names = ("torch", "anomalib", "lightning", "sklearn", "cv2")
    code = "import sys\nfrom anomalib_vae_attention.benchmark import command, comparison, report\n"
    code += f"sys.exit(any(name in sys.modules for name in {names}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""What is compared: names of models, categories, cells."""

from dataclasses import replace
from pathlib import Path

import pytest

from anomalib_vae_attention.backbone import PACKAGED_BACKBONE
from anomalib_vae_attention.benchmark.command import RUNTIMES as OFFERED
from anomalib_vae_attention.benchmark.command import make_parser
from anomalib_vae_attention.benchmark.plan import BACKBONE, Cell, canonical_name, find_category, plan_cells, read_model
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
    ],
)
def test_one_name_for_every_model(given: str, canonical: str) -> None:
    assert canonical_name(given) == canonical
    assert read_model(canonical) == read_model(given)


@pytest.mark.parametrize(
    "name", ["stfpm", "patchcore:0", "patchcore:x", "patchcore:-fast", "padim:0", "padim:1.5", "vae_attention:none", ""]
)
def test_what_is_no_model_is_named_in_the_error(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"models: '.*' (is not available; there are vae_attention|has no such variant)"
    ):
        canonical_name(name)


def test_a_category_is_found_and_others_are_offered(tiny_root: Path) -> None:
    assert find_category(tiny_root, "parts/washer") == (tiny_root / "parts" / "washer").resolve()
    with pytest.raises(ValueError, match=r"categories: .*other.* no folder train/good. Available .*: parts/washer"):
        find_category(tiny_root, "other")
    with pytest.raises(ValueError, match="data_root: there is no folder"):
        find_category(tiny_root / "missing", "other")


def test_the_backbone_runs_once_a_category_and_only_for_latencies() -> None:
    categories = {"a": Path("/data/a"), "b": Path("/data/b")}
    models = ["vae_attention", "padim"]
    cells = plan_cells(categories, models, [3, 4], "net", ["x"], 64, keep=True, export=False)
    names = [(cell.category, cell.model, cell.seed) for cell in cells]
    assert names[:5] == [
        ("a", BACKBONE, 3),
        ("a", "vae_attention", 3),
        ("a", "padim", 3),
        ("a", "vae_attention", 4),
        ("a", "padim", 4),
    ]
    assert len(cells) == 10
    assert [cell.keep for cell in cells[:5]] == [True, True, True, False, False]
    assert not any(cell.export for cell in cells)
    without = plan_cells(categories, models, [3, 4], "net", ["x"], 64, keep=False, export=True)
    assert len(without) == 8
    assert not any(cell.keep or cell.export or cell.model == BACKBONE for cell in without)


@pytest.mark.parametrize("change", [{"seed": 1}, {"image_size": 64}, {"folder": "/other/a/b"}, {"export": False}])
def test_another_cell_has_another_folder(change: dict[str, object]) -> None:
    assert replace(CELL, **change).key != CELL.key
    assert "/" not in CELL.key
    assert ":" not in replace(CELL, model="patchcore:0.01").key


def test_defaults_of_the_command_are_those_of_the_model() -> None:
    defaults = make_parser().parse_args(["--data_root", ".", "--categories", "a"])
    assert defaults.backbone == PACKAGED_BACKBONE
    assert tuple(defaults.layers) == DEFAULT_LAYERS
    assert tuple(defaults.runtimes) == OFFERED == tuple(RUNTIMES)

"""The layout: imports point down only, and files are short."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "anomalib_vae_attention"
ROOT = Path(__file__).parents[1]
STUDIES = "docs/studies"
BELOW = {
    STUDIES: ["benchmark", "calibrate", "dsprites"],
    "benchmark": ["explain"],
    "train": ["predict"],
    "serve": ["explain"],
    "explain": ["predict"],
    "predict": ["__init__", "calibrate"],
    "calibrate": ["__init__", "lightning_model"],
    "__init__": ["lightning_model"],
    "lightning_model": ["arguments", "fit"],
    "arguments": ["image_vae"],
    "fit": ["torch_model", "image_vae", "thresholds"],
    "torch_model": ["backbone", "batch_norm_folding", "reference", "attention", "scoring"],
    "image_vae": ["reference", "attention", "scoring"],
    "reference": ["vae"],
    "vae": ["resampling", "common"],
    "thresholds": ["anomalib_support"],
    "anomalib_support": ["data", "common", "scoring"],
    "data": ["common"],
    "dsprites": ["image_vae/elbo", "image_vae/conv", "image_vae/network", "attention", "common"],
    "cli": ["anomalib_support/command_line", "common/argument_checks"],
    "plugin": [],
    "backbone": [],
    "batch_norm_folding": [],
    "attention": [],
    "scoring": [],
    "resampling": [],
    "common": [],
}
"""Each room of the package, and each file of its root: what lies right below it. It may import all that lies below."""
TOO_LONG: set[str] = set()
"""Files of more than 300 lines."""


def files() -> dict[str, Path]:
    """Return the files of the package and the studies by their paths, without ending, in them."""
    package = ROOT / PACKAGE
    inside = {file.relative_to(package).with_suffix("").as_posix(): file for file in package.rglob("*.py")}
    studies = {file.relative_to(ROOT).with_suffix("").as_posix(): file for file in (ROOT / STUDIES).rglob("*.py")}
    return inside | studies


def room_of(name: str) -> str:
    """Return the room of a file, which is the file itself in the root."""
    return STUDIES if name.startswith(STUDIES) else name.partition("/")[0]


def imports(name: str, file: Path, known: set[str]) -> set[str]:
    """Return the files of the package that a file imports anywhere, also within functions and for types only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE]
        elif isinstance(node, ast.ImportFrom):
            above = [PACKAGE, *name.split("/")][: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            modules = [f"{base}.{alias.name}" for alias in node.names] if base.split(".")[0] == PACKAGE else []
        else:
            continue
        for module in modules:
            path = "/".join(module.split(".")[1:])
            # A module, a package, or a name within one of these.
            candidates = [path, f"{path}/__init__".lstrip("/")]
            candidates += [path.rpartition("/")[0], f"{path.rpartition('/')[0]}/__init__".lstrip("/")]
            found.add(next(candidate for candidate in candidates if candidate in known))
    return found - {name}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Return what each file imports."""
    all_files = files()
    return {name: imports(name, file, set(all_files)) for name, file in all_files.items()}


def test_imports_point_down(graph: dict[str, set[str]]) -> None:
    """A file imports nothing but its own room and those below."""
    reached: dict[str, set[str]] = {}
    for room in TopologicalSorter(BELOW).static_order():
        reached[room] = {room}.union(*(reached[below] for below in BELOW.get(room, [])))
    edges = [(name, other) for name, imported in graph.items() for other in imported]
    assert not [edge for edge in edges if not {room_of(edge[1]), edge[1]} & reached[room_of(edge[0])]]


def test_no_circle(graph: dict[str, set[str]]) -> None:
    """No file imports itself by way of others."""
    TopologicalSorter(graph).prepare()


def test_dsprites_needs_nothing_of_anomalib() -> None:
    """The study of disentanglement runs without anomalib."""
    for name, file in files().items():
        if name.startswith("dsprites/"):
            assert "import anomalib" not in file.read_text(encoding="utf-8"), name
            assert "from anomalib." not in file.read_text(encoding="utf-8"), name


def test_files_are_short_and_the_root_is_small() -> None:
    """No file has more than 300 lines, and the root no more than 11 files, which tell the default path."""
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in files().items()}
    assert {name for name, length in lengths.items() if length > 300} == TOO_LONG
    assert len(list((ROOT / PACKAGE).glob("*.py"))) <= 11

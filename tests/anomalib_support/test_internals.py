"""The internals of other libraries that the package relies on: all are listed, and all are there."""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import anomalib_vae_attention
from anomalib_vae_attention.anomalib_support import INTERNALS

NOT_INTERNAL = {"_asdict", "_fields", "_replace"}
"""Documented members of named tuples."""


def find_holder(path: str) -> tuple[object, str]:
    """Return the module or class that holds a name, and the name."""
    parts, name = path.split(".")[:-1], path.rpartition(".")[2]
    holder = import_module(parts[0])
    for count, part in enumerate(parts[1:], 2):
        holder = getattr(holder, part, None) or import_module(".".join(parts[:count]))
    return holder, name


@pytest.mark.parametrize("path", INTERNALS)
def test_it_is_there(path: str) -> None:
    """Each name still exists: as an attribute, or among what the class makes for its instances or looks for."""
    holder, name = find_holder(path)
    assert hasattr(holder, name) or name in inspect.getsource(holder)


def test_all_are_listed() -> None:
    """No private name that the package does not define itself is used without being listed."""
    files = list(Path(anomalib_vae_attention.__file__).parent.rglob("*.py"))
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    own, used = set(), set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.ImportFrom) and "._" in (node.module or ""):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            own.add(node.attr)
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            is_inherited = ast.unparse(node.value) == "super()"
            used |= {node.attr} if is_inherited or node.attr not in own else set()
    assert "_trainer" in used
    assert used - NOT_INTERNAL <= {path.rpartition(".")[2] for path in INTERNALS}

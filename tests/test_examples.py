"""The examples in docstrings do what they say."""

import doctest
import runpy
import sys
from importlib import import_module
from pathlib import Path

import pytest

import anomalib_vae_attention

ROOT = Path(anomalib_vae_attention.__file__).parents[1]
SCRIPTS = sorted((ROOT / "docs" / "examples").glob("*.py"))
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in (ROOT / "anomalib_vae_attention").rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prints what the docstring shows."""
    # They may write files.
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_without_arguments_says_how_it_is_called(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit, match=f"python {script.name} .*model"):
        runpy.run_path(str(script), run_name="__main__")

"""Config files that are cut off, or have wrong keys or values, make a model or one error that names what is wrong."""

import contextlib
import copy
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from anomalib.cli import AnomalibCLI
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CASES

from anomalib_vae_attention import VaeAttention

TEXT = (Path(__file__).parents[2] / "configs" / "folder.yaml").read_text(encoding="utf-8")
VALUES = [None, -1, 0.5, "x", "", [], [1], {}, {"a": 1}, True]


def paths(node: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """List the places of all keys of a nested dictionary."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*above, key)
            yield from paths(value, (*above, key))


def parse(text: str, folder: Path) -> tuple[object, str]:
    """Give the command a config file; return the model, if it makes one, and the error otherwise."""
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(io.StringIO()):
            return AnomalibCLI(["train", "--config", str(file)], run=False).model, ""
    except SystemExit:
        return None, shown.getvalue()
    except (ValueError, TypeError) as error:
        # What the constructors of model and data say.
        return None, str(error)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the config file."""
    return tmp_path_factory.mktemp("configs")


@settings(max_examples=30, **CASES)
@given(place=st.sampled_from(list(paths(yaml.safe_load(TEXT)))), value=st.sampled_from([*VALUES, "RENAME"]))
def test_wrong_keys_and_values(place: tuple[str, ...], value: object, scratch: Path) -> None:
    """A misspelt key or a value of another kind is named."""
    config = copy.deepcopy(yaml.safe_load(TEXT))
    node = config
    for key in place[:-1]:
        node = node[key]
    wrong = place[-1]
    if value == "RENAME":
        wrong += "_misspelt"
        node[wrong] = node.pop(place[-1])
    else:
        node[wrong] = copy.deepcopy(value)
    model, error = parse(yaml.safe_dump(config), scratch)
    if model is None:
        assert wrong in error
    else:
        assert isinstance(model, VaeAttention)
        assert value != "RENAME"


@settings(max_examples=10, **CASES)
@given(length=st.integers(0, len(TEXT) - 1), more=st.sampled_from(["", "\t: [", "\0", "- 1"]))
def test_cut_off_files(length: int, more: str, scratch: Path) -> None:
    """What is left of a file is taken as it is, or refused with an error."""
    model, error = parse(TEXT[:length] + more, scratch)
    if model is None:
        assert "error" in error
    else:
        assert isinstance(model, VaeAttention)

"""The command ``vae-attention``."""

import subprocess
import sys
from importlib import util
from unittest.mock import Mock

import pytest

from anomalib_vae_attention import cli


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_names_every_subcommand(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["nothing"]])
def test_what_is_no_subcommand_is_an_error_that_shows_them(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in [*cli.COMMANDS, *arguments])


@pytest.mark.parametrize("module", [module for module, _ in cli.COMMANDS.values()])
def test_the_modules_of_the_subcommands_are_there(module: str) -> None:
    assert util.find_spec(module)


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = "import sys; from anomalib_vae_attention import cli; cli.main(['-h']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_version_and_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vae-attention 0.")
    assert cli.main(["pedict"]) == 2
    assert capsys.readouterr().err == "vae-attention: there is no subcommand 'pedict'. Did you mean 'predict'?\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ModuleNotFoundError("No module", name="openvino"), 2, "pip install '.[openvino]'"),
        (ModuleNotFoundError("No module", name="ray"), 2, "pip install '.[ray]'"),
        (FileNotFoundError("There is no folder parts."), 2, "vae-attention predict: There is no folder parts."),
        (ValueError("--actors must be at least 1."), 2, "vae-attention predict: --actors must be at least 1."),
        (OSError(28, "No space left on device"), 2, "vae-attention predict: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_users_can_mend_is_one_line(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_name: str) -> None:
        raise error

    monkeypatch.setattr(cli.importlib, "import_module", fail)
    assert cli.main(["predict", "model.xml", "parts"]) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other package brings ``nothing``, and an index is nothing that users give."""
    for error in (ModuleNotFoundError("No module", name="nothing"), IndexError("list index out of range")):
        monkeypatch.setattr(cli.importlib, "import_module", Mock(side_effect=error))
        with pytest.raises(type(error)):
            cli.main(["predict", "model.xml", "parts"])

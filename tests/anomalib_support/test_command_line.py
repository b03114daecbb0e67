"""What anomalib's own command prints with this model, and which paths it takes."""

import io
import logging
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from anomalib.data import Tabular
from anomalib.data.utils.path import contains_non_printable_characters
from anomalib.models.components import AnomalibModule
from anomalib.models.components.base.export_mixin.utils import raise_missing_onnxscript_error
from rich.logging import RichHandler
from support import folder, small_model, write_images

from anomalib_vae_attention.anomalib_support import command_line
from anomalib_vae_attention.anomalib_support.unreadable_images import require_as_shown
from anomalib_vae_attention.common.argument_checks import take_overrides
from anomalib_vae_attention.scoring import require_scorable


def test_each_line_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    text = io.StringIO()

    def configure() -> None:
        root.handlers[:] = [logging.StreamHandler(text), RichHandler()]

    for is_terminal, kept in ((False, logging.StreamHandler), (True, RichHandler)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda answer=is_terminal: answer)
        command_line.logging_once(configure)()
        assert [type(handler) for handler in root.handlers] == [kept]


def test_chatter_is_left_out_by_message(caplog: pytest.LogCaptureFixture) -> None:
    command_line.quiet()
    lightning = logging.getLogger(command_line.TALKERS[0])
    with caplog.at_level(logging.INFO):
        lightning.info("GPU available: False, used: False")
        lightning.info("The disk is full.")
    assert [record.getMessage() for record in caplog.records] == ["The disk is full."]


def test_errors_of_this_package_are_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(pre_trained=False)

    def ours() -> None:
        from PIL import Image

        Image.new("RGB", (8, 8)).save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("RGB", (8, 8))])
        require_as_shown([tmp_path / "a.tif"])

    with pytest.raises(SystemExit) as end:
        command_line.in_one_line(ours)()
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"anomalib: {tmp_path / 'a.tif'} would be read wrongly")
    with pytest.raises(SystemExit):
        command_line.in_one_line(require_scorable)(torch.zeros(1, 3, 8, 8), torch.zeros(()))
    assert capsys.readouterr().err.startswith("anomalib: The model has not been fitted")
    monkeypatch.setattr(AnomalibModule, "to_onnx", lambda *_arguments, **_options: raise_missing_onnxscript_error())
    monkeypatch.setitem(sys.modules, "openvino", None)
    for package, export in (("onnxscript", model.to_onnx), ("openvino", model.to_openvino)):
        with pytest.raises(SystemExit):
            command_line.in_one_line(export)(tmp_path)
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == f"anomalib: {package} is not installed: pip install '.[openvino]'"
    # A fault of ours or of others keeps its traceback.
    with pytest.raises(ValueError, match="invalid literal"):
        command_line.in_one_line(int)("x")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vae_atention", "there is no 'vae_atention'. Did you mean 'vae_attention'?"),
        ("Padmi", "there is no 'Padmi'. Did you mean 'Padim'?"),
        ("a.NoneLogger", ""),
        ("nothing_like_it", ""),
    ],
)
def test_slips_are_a_line(name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths = ["anomalib.models.Padim", "anomalib_vae_attention.VaeAttention"]

    def call() -> None:
        command_line.refuse_slip(AnomalibModule, name, lambda _: paths, {"vae_attention": "VaeAttention"})

    if line:
        with pytest.raises(SystemExit):
            call()
    else:
        call()
    assert capsys.readouterr().err == (f"anomalib: {line}\n" if line else "")


def test_a_missing_package_of_a_logger_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "LOGGERS", {"MLFlowLogger": "no_such_package"})
    with pytest.raises(SystemExit):
        command_line.refuse_slip(object, "anomalib.loggers.AnomalibMLFlowLogger", lambda _: (), {})
    assert "pip install no_such_package" in capsys.readouterr().err


def test_folders_in_any_language(tmp_path: Path) -> None:
    root = tmp_path / "Prüfteile ☃ 部品"
    write_images(root)
    datamodule = folder(root)
    datamodule.setup()
    assert len(datamodule.train_data) > 0
    assert contains_non_printable_characters("line\nbreak")


def test_tables_of_paths_below_a_root(tmp_path: Path) -> None:
    """With pandas 3, whose columns of texts take no paths, anomalib's own ends with a TypeError."""
    write_images(tmp_path)
    table = pd.DataFrame({
        "image_path": ["good/0.png", "good/1.png", "good/2.png", "bad/0.png"],
        "mask_path": ["", "", "", "bad/1.png"],
        "label_index": [0, 0, 0, 1],
        "split": ["train", "train", "test", "test"],
    })
    datamodule = Tabular(name="parts", samples=table, root=tmp_path, num_workers=0)
    datamodule.setup()
    assert list(datamodule.train_data.samples.image_path) == [str(tmp_path / "good" / f"{one}.png") for one in (0, 1)]


def test_overrides_are_taken_wherever_they_stand() -> None:
    overrides, rest = take_overrides(["--runs", "a", "b", "data.root=/x", "--output", "./c=d", "e.f=1"])
    assert overrides == ["data.root=/x", "e.f=1"]
    assert rest == ["--runs", "a", "b", "--output", "./c=d"]

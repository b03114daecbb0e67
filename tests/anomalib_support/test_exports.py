"""Exports are whole or not there, and tell what they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anomalib.deploy import CompressionType
from anomalib.models.components import AnomalibModule
from support import small_model

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.anomalib_support import exports


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the files of exports as they are: they are not real."""
    for name in ("describe_onnx", "finish_openvino"):
        monkeypatch.setattr(exports, name, lambda *_arguments, **_options: None)


@pytest.mark.parametrize(
    ("name", "main", "other"),
    [
        ("to_torch", "model.pt", "more.bin"),
        ("to_onnx", "model.onnx", "model.onnx.data"),
        ("to_openvino", "model.xml", "model.bin"),
    ],
)
@pytest.mark.usefixtures("unfinished")
def test_an_export_is_replaced_whole(
    name: str,
    main: str,
    other: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second export replaces the first when it is complete; one that fails in the middle leaves it as it was."""
    model = small_model(pre_trained=False)

    def exporting(text: str, error: type[BaseException] | None = None) -> Callable[..., Path]:
        def export(_model: object, root: Path, file_name: str = "model", **_options: object) -> Path:
            weights = Path(root) / "weights"
            weights.mkdir()
            (weights / other).write_text(text)
            if error:
                raise error
            file = weights / main.replace("model", file_name)
            file.write_text(text)
            return file

        return export

    for text in ("first", "second"):
        monkeypatch.setattr(AnomalibModule, name, exporting(text))
        assert getattr(model, name)(tmp_path).read_text() == text
    monkeypatch.setattr(AnomalibModule, name, exporting("half", KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        getattr(model, name)(tmp_path)
    assert {file.name: file.read_text() for file in (tmp_path / "weights").iterdir()} == {
        main: "second",
        other: "second",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("moves", [0, 1])
@pytest.mark.usefixtures("unfinished")
def test_no_export_of_two_models(moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption while files are moved to their place leaves no new weights beside the old graph."""
    model, move = small_model(pre_trained=False), Path.replace

    def exporting(text: str) -> Callable[..., Path]:
        def export(_model: object, root: Path) -> Path:
            for name in ("model.xml", "model.bin"):
                (Path(root) / name).write_text(text)
            return Path(root) / "model.xml"

        return export

    def killed(file: Path, target: Path) -> None:
        if len(moved) == moves:
            raise KeyboardInterrupt
        moved.append(target)
        move(file, target)

    moved: list[Path] = []
    monkeypatch.setattr(AnomalibModule, "to_openvino", exporting("first"))
    model.to_openvino(tmp_path)
    monkeypatch.setattr(AnomalibModule, "to_openvino", exporting("second"))
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        model.to_openvino(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"model.bin"}


def test_half_precision_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``compression_type`` reaches what halves, by name as by place; what stays is told, bytes want thresholds."""
    caplog.set_level("INFO", exports.logger.name)
    model, halved = small_model(pre_trained=False), []
    monkeypatch.setattr(AnomalibModule, "to_openvino", lambda _model, root, *_arguments, **_options: root / "model.xml")
    monkeypatch.setattr(exports, "finish_openvino", lambda *_arguments, **options: halved.append(options["halved"]))
    model.to_openvino(tmp_path)
    model.to_openvino(tmp_path, compression_type=CompressionType.INT8)
    model.to_openvino(tmp_path, compression_type=CompressionType.FP16)
    model.to_openvino(tmp_path, "model", (64, 64), CompressionType.FP16)
    assert halved == [False, False, True, True]
    told = [record.message for record in caplog.records]
    assert ["calibrate" in message for message in told] == [True, False, False]
    assert sum("stay as they are" in message for message in told) == 2


@pytest.mark.parametrize(
    ("model", "compression", "words"),
    [
        ({"vae": "conv"}, CompressionType.INT8_PTQ, "image VAEs have none"),
        ({"pre_trained": False}, CompressionType.INT8_ACQ, "labels of test images: use INT8_PTQ"),
    ],
)
def test_compressions_that_are_refused(
    model: dict[str, Any], compression: CompressionType, words: str, tmp_path: Path
) -> None:
    """At once, with the reason."""
    with pytest.raises(ValueError, match=words):
        VaeAttention(**model).to_openvino(tmp_path, compression_type=compression)
    assert not list(tmp_path.iterdir())


def test_integers_need_images() -> None:
    """Their scales are those of good images."""
    with pytest.raises(ValueError, match="needs a datamodule"):
        VaeAttention(pre_trained=False)._post_training_quantization_ov(None)

"""anomalib's inferencer computes this model's exports in single precision, and others as it did."""

from pathlib import Path

import pytest

from anomalib_vae_attention.anomalib_support.exports import describe
from anomalib_vae_attention.anomalib_support.inferencer import OURS

openvino = pytest.importorskip("openvino")


def write_export(folder: Path, model: str) -> Path:
    """Write a model of one operation that says what it is an export of."""
    from openvino import opset13

    pixels = openvino.op.Parameter(openvino.Type.f32, openvino.Shape([1, 3, 8, 8]))
    exported = openvino.Model([opset13.relu(pixels)], [pixels], "exported")
    exported.set_rt_info(model, ["model_info", "model"])
    openvino.save_model(exported, folder / "model.xml")
    return folder / "model.xml"


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        ("VaeAttention", None, {"INFERENCE_PRECISION_HINT": "f32"}),
        ("VaeAttention", {"NUM_STREAMS": "1"}, {"NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}),
        ("VaeAttention", {"INFERENCE_PRECISION_HINT": "bf16"}, {"INFERENCE_PRECISION_HINT": "bf16"}),
        ("VaeAttention", {"EXECUTION_MODE_HINT": "ACCURACY"}, {"EXECUTION_MODE_HINT": "ACCURACY"}),
        ("Padim", None, None),
    ],
)
@pytest.mark.parametrize("given_as", ["xml", "bin", "bytes"])
def test_precision_of_the_inferencer(
    model: str,
    config: dict | None,
    expected: dict | None,
    given_as: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exports of this model get single precision, unless a precision is asked for; those of others get nothing."""
    from anomalib.deploy import OpenVINOInferencer

    # The inferencer makes a folder where it runs.
    monkeypatch.chdir(tmp_path)
    file = write_export(tmp_path, model)
    weights = file.with_suffix(".bin")
    path = {"xml": file, "bin": weights, "bytes": (file.read_bytes(), weights.read_bytes())}[given_as]
    inferencer = OpenVINOInferencer(path, device="CPU", config=config)
    assert inferencer.config == expected
    if expected and expected.get("INFERENCE_PRECISION_HINT") == "f32":
        assert inferencer.model.get_property("INFERENCE_PRECISION_HINT").to_string() in {"f32", "float"}


def test_exports_say_that_they_are_ours() -> None:
    """The name that is looked for is what the metadata of exports hold."""
    from anomalib_vae_attention import VaeAttention

    assert describe(VaeAttention(pre_trained=False, visualizer=False))["model"].encode() == OURS

"""Exports of the fitted model: ONNX Runtime, OpenVINO and anomalib's inferencers against torch."""

import collections
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch
from anomalib.data import InferenceBatch
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from support import Fitted

from anomalib_vae_attention import EmbeddedAD, NormalQuantile, VaeAttention
from anomalib_vae_attention.anomalib_support.openvino_ir import finish_openvino
from anomalib_vae_attention.data import drawing

NAMES = ("pred_score", "pred_label", "anomaly_map", "pred_mask")


@pytest.fixture(scope="module")
def loaded(fitted: Fitted) -> VaeAttention:
    """Load the fitted model from its checkpoint, as `anomalib export` does."""
    return VaeAttention.load_from_checkpoint(fitted.checkpoint).eval()


@pytest.fixture(scope="module")
def quantile(fitted: Fitted, test_images: dict[str, torch.Tensor]) -> VaeAttention:
    """Load the fitted model with thresholds that half of the good test images exceed."""
    post_processor = NormalQuantile(0.55)
    model = VaeAttention.load_from_checkpoint(fitted.checkpoint, post_processor=post_processor).eval()
    with torch.no_grad():
        prediction = model.model(test_images["image"][~test_images["label"]])
    post_processor.update(prediction.pred_score, prediction.anomaly_map)
    post_processor.compute()
    return model


@pytest.fixture(scope="module")
def models(loaded: VaeAttention, quantile: VaeAttention) -> dict[str, VaeAttention]:
    """Return the model to export for each runtime: one with anomalib's thresholds, one with others."""
    return {"onnx": loaded, "openvino": quantile}


@pytest.fixture(scope="module")
def exported(models: dict[str, VaeAttention], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export to ONNX with the size left open, and to OpenVINO with it given: each takes half a minute."""
    root = tmp_path_factory.mktemp("exported")
    return {
        "onnx": models["onnx"].to_onnx(root / "onnx"),
        "openvino": models["openvino"].to_openvino(root / "openvino", input_size=(256, 256)),
    }


def check(ours: dict[str, np.ndarray], theirs: InferenceBatch) -> None:
    """Demand scores and maps within 1 in 1000, and the very same labels and masks."""
    assert set(ours) >= set(NAMES)
    for name in ("pred_score", "anomaly_map"):
        expected = getattr(theirs, name).numpy()
        assert ours[name].shape == expected.shape, name
        assert np.abs(ours[name] - expected).max() < 1e-3, name
    for name in ("pred_label", "pred_mask"):
        assert (ours[name] == getattr(theirs, name).numpy()).all(), name


def choose(test_images: dict[str, torch.Tensor], batch: int) -> torch.Tensor:
    """Choose good and defective images, as they come from the file."""
    bad, good = test_images["label"].nonzero().flatten(), (~test_images["label"]).nonzero().flatten()
    return test_images["raw"][torch.cat([bad[:1], good[:1], bad[-1:]])[:batch]]


SINGLE = {"INFERENCE_PRECISION_HINT": "f32"}
"""What OpenVINO must be told, because its default may be bfloat16."""


def run_openvino(path: Path, image: torch.Tensor, config: dict[str, str] = SINGLE) -> dict[str, np.ndarray]:
    """Run a model in OpenVINO."""
    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", config)
    return {next(iter(output.names)): value for output, value in model(image.numpy()).items()}


def run_onnx(path: Path, image: torch.Tensor) -> dict[str, np.ndarray]:
    """Run a model in ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: image.numpy()}), strict=True))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("runtime", "run"), [("onnx", run_onnx), ("openvino", run_openvino)], ids=["onnx", "openvino"])
def test_runtimes(
    runtime: str,
    run: Callable[[Path, torch.Tensor], dict[str, np.ndarray]],
    batch: int,
    models: dict[str, VaeAttention],
    exported: dict[str, Path],
    test_images: dict[str, torch.Tensor],
) -> None:
    """Runtimes give what torch gives, whatever the number of images."""
    image = choose(test_images, batch)
    with torch.no_grad():
        check(run(exported[runtime], image), models[runtime](image))


def test_exports_keep_the_exemplars_as_bytes(quantile: VaeAttention, exported: dict[str, Path]) -> None:
    """A runtime that made floats of them would write four times as much."""
    bank = quantile.model.get_buffer("reference.bank").nbytes
    tensors = sum(tensor.nbytes for tensor in [*quantile.parameters(), *quantile.buffers()])
    for file in exported.values():
        written = sum(part.stat().st_size for part in file.parent.iterdir())
        # Half of the bank for the graph: exemplars of two bytes would be too much.
        assert bank < written < tensors + bank / 2


def test_an_onnx_export_is_one_file_that_explains_itself(exported: dict[str, Path], fitted: Fitted) -> None:
    """It loads from its bytes alone, under any name, and says what goes in, what comes out and where it is from."""
    file = exported["onnx"]
    assert [part.name for part in file.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert "channels in the order red, green, blue, values from 0 to 1" in told["input"]
    assert {f"output_{output.name}" for output in session.get_outputs()} <= set(told)
    assert told["version_timm"] == timm.__version__
    assert told["training_images"] == str(drawing.TRAIN_GOOD)
    assert len(told["training_sha256_of_names_and_sizes"]) == 64
    raw = json.loads(told["raw_thresholds"])
    assert raw["image_threshold"] == fitted.model.post_processor.image_threshold.item()
    assert [entry.version for entry in onnx.load(file).opset_import if not entry.domain] == [18]


def test_an_openvino_export_explains_itself(exported: dict[str, Path]) -> None:
    """It tells how its thresholds were found."""
    model = openvino.Core().read_model(exported["openvino"])
    assert "0.55 (images)" in model.get_rt_info(["vae_attention", "thresholds_from"]).astype(str)


def test_half_precision_halves_the_file(
    exported: dict[str, Path], test_images: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Constants of two bytes, less what has one already; scores stay within .002, maps within .005."""
    folder = shutil.copytree(exported["openvino"].parent, tmp_path / "half")
    finish_openvino(folder / "model.xml", {}, halved=True)
    core, kinds = openvino.Core(), collections.Counter()
    for node in core.read_model(folder / "model.xml").get_ops():
        if node.get_type_name() == "Constant":
            kinds[node.get_element_type().get_type_name()] += node.get_byte_size()
    assert kinds["f32"] < 0.02 * kinds["f16"]
    whole = (exported["openvino"].with_suffix(".bin")).stat().st_size
    assert (folder / "model.bin").stat().st_size < (whole + kinds["i8"] + kinds["u8"]) / 2 + 20_000
    assert {file.name for file in folder.iterdir()} == {"model.xml", "model.bin"}
    image = choose(test_images, 3)
    exact, half = run_openvino(exported["openvino"], image), run_openvino(folder / "model.xml", image)
    for name, greatest in (("pred_score", 2e-3), ("anomaly_map", 5e-3)):
        assert np.abs(exact[name] - half[name]).max() < greatest, name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_cannot_be_judged_is_defective(
    value: float, models: dict[str, VaeAttention], exported: dict[str, Path], test_images: dict[str, torch.Tensor]
) -> None:
    """In every runtime, OpenVINO's own choice of precision included, and the other images are as without it."""
    image = test_images["raw"][~test_images["label"]][:2].clone()
    image[1, 2, 100, 200] = value
    with torch.no_grad():
        results = {"torch": models["openvino"](image)._asdict()}
    results["onnx"] = run_onnx(exported["onnx"], image)
    results["openvino"] = run_openvino(exported["openvino"], image)
    results["openvino, default"] = run_openvino(exported["openvino"], image, {})
    for name, result in results.items():
        assert result["pred_score"][1] == 1, name
        assert result["pred_label"][1], name
        assert (result["anomaly_map"][1] == 1).all(), name
        assert result["pred_mask"][1].all(), name
        assert result["pred_score"][0] < 1, name
        assert result["pred_label"][0] == (result["pred_score"][0] > 0.5), name


def test_another_size_with_the_size_left_open(loaded: VaeAttention, exported: dict[str, Path]) -> None:
    """With the size left open, an image that is to be resized gives what it gives in torch."""
    image = torch.rand(1, 3, 200, 320)
    with torch.no_grad():
        check(run_onnx(exported["onnx"], image), loaded(image))


def test_inferencers(
    quantile: VaeAttention,
    exported: dict[str, Path],
    embedded: EmbeddedAD,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """anomalib's inferencers read an image file and find what torch finds in it."""
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    monkeypatch.chdir(tmp_path)
    sample = next(item for item in embedded.test_data if item.gt_label)
    with torch.no_grad():
        expected = quantile(sample.image[None])
    torch_result = TorchInferencer(quantile.to_torch(tmp_path), device="cpu").predict(sample.image_path)
    assert not torch_result.anomaly_map.requires_grad
    # anomalib's batches drop the channel of maps.
    shaped = {name: getattr(torch_result, name).reshape(getattr(expected, name).shape).numpy() for name in NAMES}
    check(shaped, expected)
    result = OpenVINOInferencer(exported["openvino"], device="CPU", config=SINGLE).predict(sample.image_path)
    assert result.pred_score.item() == pytest.approx(expected.pred_score.item(), abs=1e-3)
    assert np.abs(result.anomaly_map.squeeze() - expected.anomaly_map.squeeze().numpy()).max() < 1e-3
    # This image has a pixel on the threshold, .50000006 and .5: maps differ by their last digit.
    clear = np.abs(expected.anomaly_map.squeeze().numpy() - 0.5) > 1e-6
    assert clear.mean() > 0.999
    assert (result.pred_mask.squeeze() == expected.pred_mask.squeeze().numpy())[clear].all()
    assert bool(result.pred_label.item()) is bool(expected.pred_label.item()) is True


def test_labels_of_normal_quantile(quantile: VaeAttention, test_images: dict[str, torch.Tensor]) -> None:
    """The thresholds exported part the good test images, so that labels that agree say something."""
    with torch.no_grad():
        label = quantile(test_images["raw"][~test_images["label"]]).pred_label
    assert int(label.sum()) == 6

"""anomalib's standard for image VAEs: each, with every attention, through every entry point and export."""

from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from support import SMALL_IMAGE_VAES, make_engine, scores, small_image_model

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.image_vae.attention_maps import ATTENTIONS
from anomalib_vae_attention.image_vae.model import ImageVaeModel

EVERY_VAE = pytest.mark.parametrize("vae", SMALL_IMAGE_VAES)
EVERY_ATTENTION = pytest.mark.parametrize("attention", ATTENTIONS)
DEEP_EXPORTS = ("energy", "elbo_gradient")
"""Attentions whose exports are tried with the ResNet-18 in every run: half a minute each. The others are exhaustive."""


@EVERY_VAE
@EVERY_ATTENTION
def test_every_entry_point_and_runtime(vae: str, attention: str, small_data: EmbeddedAD, tmp_path: Path) -> None:
    """train, validate, test and predict work, from the checkpoint, too, and all runtimes give what torch gives."""
    engine, model = make_engine(tmp_path, max_epochs=2), small_image_model(vae, attention=attention)
    engine.train(model=model, datamodule=small_data)
    checkpoint = engine.best_model_path
    assert torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"] == 1
    expected = scores(model, small_data)
    other, other_engine = small_image_model(vae, attention=attention), make_engine(tmp_path / "other")
    (validated,) = other_engine.validate(model=other, datamodule=small_data, ckpt_path=checkpoint, verbose=False)
    (tested,) = other_engine.test(model=other, datamodule=small_data, ckpt_path=checkpoint, verbose=False)
    assert tested.keys() >= {"image_AUROC", "pixel_AUROC"}
    assert all(0 <= value <= 1 for value in [*tested.values(), *validated.values()])
    assert torch.equal(scores(other, small_data)[0], expected[0])
    for batch in other_engine.predict(model=other, datamodule=small_data, ckpt_path=checkpoint):
        assert batch.anomaly_map.shape[-2:] == SMALL_IMAGE_VAES[vae]["input_size"]
        assert 0 <= batch.anomaly_map.min() <= batch.anomaly_map.max() <= 1
    loaded = VaeAttention.load_from_checkpoint(checkpoint).eval()
    assert torch.equal(scores(loaded, small_data)[1], expected[1])
    if vae != "resnet18" or attention in DEEP_EXPORTS:
        check_runtimes(loaded, SMALL_IMAGE_VAES[vae]["input_size"], tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("attention", [name for name in ATTENTIONS if name not in DEEP_EXPORTS])
def test_other_attentions_of_a_deep_encoder_in_every_runtime(
    attention: str, small_data: EmbeddedAD, tmp_path: Path
) -> None:
    """All runtimes give what torch gives, too, with the attentions that the test above does not export."""
    model = small_image_model("resnet18", attention=attention)
    make_engine(tmp_path, max_epochs=1).fit(model=model, datamodule=small_data)
    check_runtimes(model.eval(), SMALL_IMAGE_VAES["resnet18"]["input_size"], tmp_path)


def check_runtimes(model: VaeAttention, size: tuple[int, int], root: Path) -> None:
    """Demand that ONNX Runtime and OpenVINO give what torch gives, for one and for several images."""
    path = model.to_onnx(root, input_size=size)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (1, 3):
        image = torch.rand(count, 3, *size)
        with torch.no_grad():
            expected = model(image)
        ours = dict(zip(names, session.run(None, {session.get_inputs()[0].name: image.numpy()}), strict=True))
        theirs = {next(iter(output.names)): value for output, value in compiled(image.numpy()).items()}
        for found in (ours, theirs):
            for field in ("pred_score", "anomaly_map"):
                wanted = getattr(expected, field).numpy()
                assert found[field].shape == wanted.shape
                assert np.abs(found[field] - wanted).max() < 1e-3, field


@EVERY_VAE
def test_inferencers(vae: str, small_data: EmbeddedAD, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """anomalib's inferencers read the exports to PyTorch and OpenVINO, and give what the model gives."""
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    monkeypatch.chdir(tmp_path)
    engine, model = make_engine(tmp_path, max_epochs=1), small_image_model(vae, attention="mean")
    engine.fit(model=model, datamodule=small_data)
    model.eval()
    sample = next(iter(small_data.test_data))
    with torch.no_grad():
        expected = model(sample.image[None])
    inferencers = [
        TorchInferencer(model.to_torch(tmp_path), device="cpu"),
        # The size left open: the inferencer does not resize.
        OpenVINOInferencer(model.to_openvino(tmp_path), device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"}),
    ]
    for inferencer in inferencers:
        result = inferencer.predict(sample.image_path)
        assert float(np.asarray(result.pred_score).item()) == pytest.approx(expected.pred_score.item(), abs=1e-3)
        assert np.abs(np.asarray(result.anomaly_map).squeeze() - expected.anomaly_map.squeeze().numpy()).max() < 1e-3


@EVERY_VAE
@EVERY_ATTENTION
def test_command_line_makes_every_choice(vae: str, attention: str) -> None:
    """anomalib's command makes the model that its arguments name."""
    arguments = ["train", "--model", "vae_attention", "--model.vae", vae, "--model.attention", attention]
    model = AnomalibCLI([*arguments, "--data", "EmbeddedAD"], run=False).model
    assert isinstance(model.model, ImageVaeModel)
    assert (model.hparams["vae"], model.model.attention) == (vae, attention)

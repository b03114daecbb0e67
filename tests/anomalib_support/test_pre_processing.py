"""Images are resized alike in the engine, in exported models and in every runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from anomalib.pre_processing import PreProcessor
from support import Fitted
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize, Transform

from anomalib_vae_attention import EmbeddedAD, VaeAttention
from anomalib_vae_attention.anomalib_support.pre_processing import AntialiasedResize, SamePreProcessor


@pytest.mark.parametrize("given", [(448, 448), (37, 301), (64, 48), (64, 64), (1, 5)])
def test_it_is_torchvisions(given: tuple[int, int]) -> None:
    """Shrinking, enlarging and both at once give what torchvision gives, exported with and without an open size."""
    image = torch.rand(2, 3, *given)
    expected = Resize([64, 48], antialias=True)(image)
    resize = AntialiasedResize((64, 48))
    torch.testing.assert_close(resize(image), expected, rtol=0, atol=1e-6)
    sizes = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    for shapes, example in (({}, image), (sizes, torch.rand(2, 3, 80, 100))):
        exported = torch.export.export(resize, (example,), dynamic_shapes=(shapes,)).module()
        torch.testing.assert_close(exported(image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("transform", [Resize([32, 32]), Compose([Resize([32, 32]), Normalize([0.5] * 3, [0.5] * 3)])])
def test_exports_resize_as_the_engine_does(transform: Transform) -> None:
    """Called, as exports call it, the pre-processor does what it does in the engine, also from a checkpoint."""
    image = torch.rand(2, 3, 80, 100)
    pre_processor, loaded = SamePreProcessor(transform), SamePreProcessor()
    loaded.load_checkpoint_config(pre_processor.checkpoint_config())
    for each in (pre_processor, loaded):
        torch.testing.assert_close(each(image), transform(image), rtol=0, atol=1e-5)
    assert SamePreProcessor()(image) is image


@pytest.mark.parametrize(
    "transform",
    [
        Resize([32, 32], antialias=False),
        Resize([32, 32], interpolation=InterpolationMode.NEAREST),
        Resize(32),
        Compose([Normalize([0.5] * 3, [0.5] * 3)]),
    ],
)
def test_others_are_anomalibs(transform: Transform) -> None:
    """What is no anti-aliased, bilinear resizing to a height and a width is exported as anomalib exports it."""
    image = torch.rand(2, 3, 80, 100)
    assert torch.equal(SamePreProcessor(transform)(image), PreProcessor(transform)(image))


@pytest.mark.parametrize("size", [None, (256, 256)], ids=["open", "given"])
def test_exported_scores_are_the_engines(
    size: tuple[int, int] | None,
    fitted_small: Fitted,
    small_data: EmbeddedAD,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images four times as large as the model's get the engine's scores from every inferencer, and so its labels."""
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    monkeypatch.chdir(tmp_path)
    model = VaeAttention.load_from_checkpoint(fitted_small.checkpoint)
    batches = fitted_small.engine.predict(model=model, datamodule=small_data, ckpt_path=fitted_small.checkpoint)
    expected = {
        path: score
        for batch in batches
        for path, score in zip(batch.image_path, batch.pred_score.tolist(), strict=True)
    }
    model = VaeAttention.load_from_checkpoint(fitted_small.checkpoint).eval()
    exported = model.to_onnx(tmp_path, input_size=size)
    inferencers = [OpenVINOInferencer(exported, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})]
    if size is None:
        inferencers.append(TorchInferencer(model.to_torch(tmp_path), device="cpu"))
    session = onnxruntime.InferenceSession(exported)
    for path, score in list(expected.items())[::3]:
        for inferencer in inferencers:
            assert float(np.asarray(inferencer.predict(path).pred_score).item()) == pytest.approx(score, abs=1e-4)
        image = read_image(path, as_tensor=True)[None]
        outputs = dict(
            zip([one.name for one in session.get_outputs()], session.run(None, {"input": image.numpy()}), strict=True)
        )
        assert np.asarray(outputs["pred_score"]).item() == pytest.approx(score, abs=1e-4)

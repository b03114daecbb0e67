"""OpenVINO computes in bfloat16 by default where the processor has it: verdicts must stand that."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from support import Fitted
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from anomalib_vae_attention.anomalib_support.openvino_ir import PRECISE, WITHOUT_PRECISION, finish_openvino
from anomalib_vae_attention.thresholds.conformal import image_threshold

RATE = 0.05


class RoundedToBfloat16(TorchDispatchMode):
    """Round what every operation returns, so that any processor computes as coarsely as one with bfloat16."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: PLW3201 - torch's
        del types
        return tree_map(
            lambda out: out.bfloat16().float() if isinstance(out, torch.Tensor) and out.dtype == torch.float32 else out,
            operation(*args, **(kwargs or {})),
        )


def assert_verdicts_stand(single: np.ndarray, coarse: np.ndarray, label: np.ndarray) -> None:
    """Scores within .02, image AUROC within .001, and no label of a good image changed at a rate of 5 %.

    Of so few images, one pair that changes places changes the AUROC by more; one may.
    """
    assert np.abs(single - coarse).max() < 0.02
    good = label == 0
    one_pair = 1 / (good.sum() * (~good).sum())
    assert abs(roc_auc_score(label, single) - roc_auc_score(label, coarse)) <= max(1e-3, one_pair + 1e-9)
    # The threshold is a good image's own score: that one lies on it.
    threshold = image_threshold(torch.from_numpy(single[good]), RATE)
    aside = np.abs(single - threshold) > 1e-6
    assert ((single > threshold) == (coarse > threshold))[good & aside].all()


def test_verdicts_with_every_operation_rounded(fitted: Fitted, test_images: dict[str, torch.Tensor]) -> None:
    image, label = test_images["image"], test_images["label"].int().numpy()
    with torch.no_grad():
        single = fitted.model.model(image).pred_score
        with RoundedToBfloat16():
            coarse = torch.cat([fitted.model.model(part).pred_score for part in image.split(8)])
    assert not torch.equal(single, coarse)
    assert_verdicts_stand(single.numpy(), coarse.numpy(), label)


@pytest.mark.parametrize("again", [False, True], ids=["exported", "written anew"])
def test_exports_ask_for_single_precision(fitted: Fitted, tmp_path: Path, again: bool) -> None:
    """Each layer that computes, once: by either of the attribute's names, the second from when OpenVINO wrote it."""
    xml = fitted.model.to_openvino(tmp_path)
    if again:
        finish_openvino(xml, {"model": "the same"})
    layers = [one for one in ET.parse(xml).iter("layer") if one.get("type") not in WITHOUT_PRECISION]
    assert len(layers) > 100
    for layer in layers:
        names = [note.get("name") for note in layer.findall("rt_info/attribute")]
        assert sum(name in PRECISE for name in names) == 1, layer.attrib
    # The order of the format: OpenVINO reads it, and so do others that hold to it.
    assert {child.tag for layer in layers for child in list(layer)[2:3]} <= {"rt_info", "input", "output"}


def test_verdicts_of_openvino_in_its_default_precision(
    fitted: Fitted, test_images: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """The backbone is in single precision under the default, and under a hint of bfloat16; scores move by 1e-3."""
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16; the test above reads the file in its place")
    fitted.model.post_processor, post_processor = None, fitted.model.post_processor
    try:
        xml = fitted.model.to_openvino(tmp_path)
    finally:
        fitted.model.post_processor = post_processor
    found = {}
    for precision, config in (
        ("f32", {"INFERENCE_PRECISION_HINT": "f32"}),
        ("default", {}),
        ("bf16", {"INFERENCE_PRECISION_HINT": "bf16"}),
    ):
        compiled = openvino.compile_model(xml, "CPU", config)
        scores = [compiled(image[None].numpy())["pred_score"] for image in test_images["raw"]]
        found[precision] = np.concatenate(scores)
        nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        convolutions = [node for node in nodes if node["layerType"].astype(str) == "Convolution"]
        assert len(convolutions) > 10
        assert {node["runtimePrecision"].astype(str) for node in convolutions} == {"f32"}
    for precision in ("default", "bf16"):
        assert np.abs(found["f32"] - found[precision]).max() < 1e-3
        assert_verdicts_stand(found["f32"], found[precision], test_images["label"].int().numpy())

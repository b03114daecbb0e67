"""Models of OpenVINO after their conversion: metadata, constants of half the size, a backbone of integers."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

SECTION = "vae_attention"
"""Where a model has the metadata, in its ``rt_info``."""
LEAST_HALVED = 256
"""Fewest elements of a constant that FP16 halves: shapes and thresholds stay exact."""
CALIBRATION_IMAGES = 300
"""Good training images at most, evenly spaced, that set the scales of 8-bit activations: nncf's own number."""


def finish_openvino(file: Path, description: dict[str, str], *, halved: bool = False) -> None:
    """Write metadata into a model of OpenVINO, and halve its constants if asked.

    OpenVINO's own halving (``compress_to_fp16``) leaves a model as it is that has constants of a byte, as exemplars
    are. Constants stay in single precision that are small, or have values beyond those of half precision.

    Args:
        file: The ``.xml`` file, with its weights beside it.
        description: The metadata.
        halved: Whether to write constants in half precision; computation is in the precision of the runtime.
    """
    import openvino
    from openvino import opset13 as operators

    model = openvino.Core().read_model(file)
    for name, text in description.items():
        model.set_rt_info(text, [SECTION, name])
    for node in model.get_ops() if halved else ():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f32:
            continue
        values = node.get_data()
        if values.size < LEAST_HALVED or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        # The runtime folds the conversion when it compiles the model.
        half = operators.convert(operators.constant(values.astype(np.float16)), "f32")
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(half.output(0))
    # The weights are mapped into memory, so that they cannot be written over.
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        written = Path(scratch) / file.name
        openvino.save_model(model, written, compress_to_fp16=False)
        del model
        for part in (written.with_suffix(".bin"), written):
            part.replace(file.parent / part.name)


def quantise_backbone(model: Any, images: Iterable[Any]) -> Any:  # noqa: ANN401
    """Let the convolutions of a model compute in integers of 8 bits, by nncf: those of the pretrained backbone.

    All else stays as it is. Differences of latents have more than 256 steps, and OpenVINO does not compile quantised
    products whose constant is the left factor. Scores shift: thresholds must be calibrated anew. The activations of
    good images, each of shape ``(1, 3, H, W)`` and from 0 to 1, set the scales.
    """
    import nncf

    kept = {"Convolution", "GroupConvolution"}
    others = [node.get_friendly_name() for node in model.get_ops() if node.get_type_name() not in kept]
    scope = nncf.IgnoredScope(names=others, validate=False)
    return nncf.quantize(model, nncf.Dataset(images), ignored_scope=scope, subset_size=CALIBRATION_IMAGES)

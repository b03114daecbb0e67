"""Models of OpenVINO after their conversion: metadata, precision, speed, halved constants, a backbone of integers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET  # noqa: S405 - reads what OpenVINO has just written

import numpy as np

from anomalib_vae_attention.common.atomic_files import write_files

SECTION = "vae_attention"
"""Where a model has the metadata, in its ``rt_info``."""
PRECISE = ("precise", "DisablePrecisionConversion")
"""Attributes of layers that OpenVINO leaves in single precision; it reads the first, and since 2026 writes the second.

See openvinotoolkit/openvino, pull requests 20625 (the attribute), 21440 (CPUs) and 34311 (the second name).
"""
WITHOUT_PRECISION = ("Const", "Parameter", "Result")
"""Types of layers that compute nothing."""
LEAST_HALVED = 256
"""Fewest elements of a constant that FP16 halves: shapes and thresholds stay exact."""
CALIBRATION_IMAGES = 300
"""Good training images at most, evenly spaced, that set the scales of 8-bit activations: nncf's own number."""


def finish_openvino(file: Path, description: dict[str, str], *, halved: bool = False) -> None:
    """Write the ``.xml`` file of a model of OpenVINO, and its weights, anew; see :func:`write_openvino`."""
    import openvino

    core = openvino.Core()
    # Weights that are mapped into memory cannot be written over everywhere.
    core.set_property({"ENABLE_MMAP": False})
    write_openvino(core.read_model(file), file, description, halved=halved)


def write_openvino(model: Any, file: Path, description: dict[str, str], *, halved: bool = False) -> None:  # noqa: ANN401
    """Write a model of OpenVINO with metadata, in single precision and fast, and with its constants halved if asked.

    OpenVINO's own halving (``compress_to_fp16``) leaves a model as it is that has constants of a byte, as exemplars
    are. Constants stay in single precision that are small, or have values beyond those of half precision.

    Args:
        model: The model; it is changed.
        file: The ``.xml`` file; its weights are written beside it.
        description: The metadata.
        halved: Whether to write constants in half precision; computation is in the precision of the runtime.

    Raises:
        OSError: If it cannot be written.
    """
    import openvino
    from openvino import opset13 as operators

    for name, text in description.items():
        model.set_rt_info(text, [SECTION, name])
    put_constants_left(model)
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

    def write(folder: Path) -> Path:
        try:
            openvino.save_model(model, folder / file.name, compress_to_fp16=False)
        except RuntimeError as error:
            # All that it says of a full disk is that a stream has an error.
            msg = f"{file} cannot be written ({error}); name another place, or make room there"
            raise OSError(msg) from error
        keep_single_precision(folder / file.name)
        return folder / file.name

    write_files(write, file.parent)


def put_constants_left(model: Any) -> None:  # noqa: ANN401
    """Turn products of batches, ``rows @ constant``, to ``(constant.T @ rows.T).T``: the same sums.

    A matrix per cell is read once per image. OpenVINO reads the left factor of a product, transposed, twice as fast as
    the constant on the right of a few rows.

    Args:
        model: A model of OpenVINO; it is changed.
    """
    from openvino import opset13 as operators

    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or any(node.get_attributes().values()):
            continue
        rows, constant = node.input_value(0), node.input_value(1)
        if len(constant.get_partial_shape()) != 3 or constant.get_partial_shape()[0] == 1 or not _is_constant(constant):
            continue
        columns = operators.matmul(constant, rows, transpose_a=True, transpose_b=True)
        product = operators.transpose(columns, operators.constant([0, 2, 1]))
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(product.output(0))


def _is_constant(value: Any) -> bool:  # noqa: ANN401
    """Say whether a value of a model of OpenVINO follows from constants alone."""
    node = value.get_node()
    inputs = node.input_values()
    return node.get_type_name() == "Constant" or (bool(inputs) and all(map(_is_constant, inputs)))


def keep_single_precision(file: Path) -> None:
    """Ask OpenVINO to compute a model in single precision, though bfloat16 or half precision is its default.

    What a backbone rounds to bfloat16 moves scores, and on fine textures verdicts. A hint of another precision changes
    as little as the default. Layers that OpenVINO fuses when it compiles lose the attribute; none is in the backbone.

    Args:
        file: The ``.xml`` file; it is written anew.
    """
    tree = ET.parse(file)  # noqa: S314 - as above
    for layer in tree.iter("layer"):
        notes = layer.find("rt_info")
        if layer.get("type") in WITHOUT_PRECISION:
            continue
        if notes is None:
            notes = ET.Element("rt_info")
            # The format's order: what a layer is, what is said of it, its ports.
            layer.insert(int(layer.find("data") is not None), notes)
        if not any(note.get("name") in PRECISE for note in notes):
            ET.SubElement(notes, "attribute", name=PRECISE[0], version="0")
    tree.write(file, encoding="utf-8", xml_declaration=True)


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

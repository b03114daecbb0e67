"""Models of OpenVINO after their conversion."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import openvino
import pytest
from openvino import opset13 as operators

from anomalib_vae_attention.anomalib_support.openvino_ir import put_constants_left, write_openvino

FLOATS = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.mark.parametrize("scaled", [False, True])
def test_constants_are_left_factors_with_the_same_products(scaled: bool) -> None:
    """A matrix per cell, in floats or in bytes times a step, becomes the left factor; a single matrix stays."""
    random = np.random.default_rng(0)
    rows = operators.parameter([5, -1, 4], np.float32)
    matrix = random.integers(-9, 9, (5, 4, 3)).astype(np.int8)
    constant = operators.constant(matrix.astype(np.float32))
    if scaled:
        constant = operators.multiply(operators.convert(operators.constant(matrix), np.float32), np.float32(2))
    shared = operators.constant(random.random((1, 3, 6), dtype=np.float32))
    products = rows
    for factor in (constant, shared):
        products = operators.matmul(products, factor, transpose_a=False, transpose_b=False)
    model = openvino.Model([products], [rows])
    given = random.random((5, 2, 4), dtype=np.float32)
    (before,) = openvino.compile_model(model, "CPU", FLOATS)([given]).values()
    put_constants_left(model)
    put_constants_left(model)
    (after,) = openvino.compile_model(model, "CPU", FLOATS)([given]).values()
    np.testing.assert_allclose(after, before, rtol=1e-5)
    found = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    assert [tuple(node.get_attributes().values()) for node in found] == [(True, True), (False, False)]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "save_model", Mock(side_effect=RuntimeError("basic_ios::clear: iostream error")))
    rows = operators.parameter([1], np.float32)
    with pytest.raises(OSError, match=r"model\.xml cannot be written \(basic_ios.*make room there"):
        write_openvino(openvino.Model([operators.abs(rows)], [rows]), tmp_path / "model.xml", {})
    assert not list(tmp_path.iterdir())

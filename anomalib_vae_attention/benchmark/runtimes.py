"""Ways to run a model on the CPU, all alike from outside: images in, seconds passed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .exporting import find_export
from .models import load_model
from .plan import Cell

Run = Callable[[NDArray[np.uint8]], Any]
"""Takes images ``(B, H, W, 3)`` in [0, 255] through the whole graph, the conversion to float included."""


class NotSupportedError(RuntimeError):
    """The processor or the installation lacks what a runtime needs."""


def to_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert images ``(B, H, W, 3)`` in [0, 255] to ``(B, 3, H, W)`` in [0, 1], as the models take them."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def eager(cell: Cell, folder: Path, shape: tuple[int, ...], threads: int) -> Run:
    """Run in PyTorch, operation by operation; arguments as :data:`RUNTIMES` says."""
    del shape
    torch.set_num_threads(threads)
    model = load_model(cell, folder / "model.ckpt")

    def run(images: NDArray[np.uint8]) -> Any:  # noqa: ANN401
        with torch.inference_mode():
            return model(torch.from_numpy(to_input(images)))

    return run


def onnx_runtime(_cell: Cell, folder: Path, shape: tuple[int, ...], threads: int) -> Run:
    """Run in ONNX Runtime; arguments as :data:`RUNTIMES` says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Each model has threads of its own, which would wait for its next turn at the expense of the others'.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    file = find_export(folder, "onnx", shape[0])
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: to_input(images)})


def open_openvino(file: Path, shape: tuple[int, ...], threads: int, precision: str = "f32") -> Run:
    """Open an exported model, an ``.xml`` file, in OpenVINO, to compute in ``"f32"`` or ``"bf16"``.

    The images will have this shape: batch, height and width.

    Raises:
        NotSupportedError: If the processor has no bfloat16.
    """
    import openvino

    core = openvino.Core()
    supported = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in supported:
        msg = f"this processor has no bfloat16, only {', '.join(supported)}"
        raise NotSupportedError(msg)
    model = core.read_model(file)
    # The shape is known here, as it is where a camera gives the images.
    model.reshape([shape[0], 3, *shape[1:]])
    configuration = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", configuration).create_infer_request()
    return lambda images: request.infer([to_input(images)], share_inputs=True, share_outputs=True)


def run_openvino(_cell: Cell, folder: Path, shape: tuple[int, ...], threads: int, precision: str) -> Run:
    """Run in OpenVINO; arguments as :data:`RUNTIMES` says, then the precision; errors as :func:`open_openvino`."""
    return open_openvino(find_export(folder, "openvino", shape[0]), shape, threads, precision)


RUNTIMES: dict[str, Callable[[Cell, Path, tuple[int, ...], int], Run]] = {
    "eager": eager,
    "onnxruntime": onnx_runtime,
    "openvino": partial(run_openvino, precision="f32"),
    "openvino-bf16": partial(run_openvino, precision="bf16"),
}
"""Name of a runtime: what loads a model into it, from its cell, the cell's folder, batch, height and width of the
images, and the number of threads."""

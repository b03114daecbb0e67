"""Ways to run a model, all alike from outside: images in, seconds passed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import InferenceBatch
from numpy.typing import NDArray
from torch import nn

from anomalib_vae_attention.anomalib_support.pre_processing import SamePreProcessor

from .exporting import find_export
from .models import BareBackbone, load_model
from .plan import BACKBONE, GPU_RUNTIMES, OURS, Cell, read_model

COMPARED = 16
"""Images that the GPU and the CPU are compared on."""
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


def open_onnx(file: Path, threads: int) -> Callable[[NDArray[np.uint8]], dict[str, NDArray]]:
    """Open an exported model, an ``.onnx`` file, in ONNX Runtime; its outputs have their names."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Each model has threads of its own, which would wait for its next turn at the expense of the others'.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name, outputs = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(outputs, session.run(outputs, {name: to_input(images)}), strict=True))


def open_openvino(file: Path, shape: tuple[int, ...], threads: int, precision: str | None = "f32") -> Run:
    """Open an exported model, an ``.xml`` or ``.onnx`` file, in OpenVINO, to compute in ``"f32"`` or ``"bf16"``.

    Without a precision it computes as the file asks, or by OpenVINO's default. The images will have this shape: batch,
    height and width.

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
    configuration = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        configuration["INFERENCE_PRECISION_HINT"] = precision
    request = core.compile_model(model, "CPU", configuration).create_infer_request()
    return lambda images: request.infer([to_input(images)], share_inputs=True, share_outputs=True)


def run_openvino(_cell: Cell, folder: Path, shape: tuple[int, ...], threads: int, precision: str) -> Run:
    """Run in OpenVINO; arguments as :data:`RUNTIMES` says, then the precision; errors as :func:`open_openvino`."""
    return open_openvino(find_export(folder, "openvino", shape[0]), shape, threads, precision)


class GpuRun:
    """A model on the GPU: from floats ``(B, 3, H, W)`` in pinned memory to scores and maps in it, both ways counted.

    Args:
        model: The model, in evaluation mode.
        shape: Batch, height and width.
        options: ``"compile"``: ``torch.compile``, the shape fixed. ``"graph"``: a CUDA graph of the forward pass.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], options: frozenset[str]) -> None:
        self._forward = torch.compile(model, fullgraph=True, dynamic=False) if "compile" in options else model
        self._graph = torch.cuda.CUDAGraph() if "graph" in options else None
        with torch.inference_mode():
            self._given = torch.zeros(shape[0], 3, *shape[1:], device="cuda")
            # Makes what depends on the size of the images: in a compiled model that would be done each time.
            model(self._given)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            # A capture needs a warm-up on another stream.
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._output = self._forward(self._given)
            torch.cuda.current_stream().wait_stream(stream)
            if self._graph:
                with torch.cuda.graph(self._graph):
                    self._output = self._forward(self._given)
        self._results = [torch.empty_like(part, device="cpu").pin_memory() for part in _parts(self._output)]

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return scores, maps and what else the model has to say; of the bare backbone nothing comes back."""
        with torch.inference_mode():
            self._given.copy_(images, non_blocking=True)
            if self._graph:
                self._graph.replay()
            else:
                self._output = self._forward(self._given)
            for result, part in zip(self._results, _parts(self._output), strict=True):
                result.copy_(part, non_blocking=True)
            torch.cuda.synchronize()
        return self._results


def _parts(output: Any) -> list[torch.Tensor]:  # noqa: ANN401
    """Return scores and maps, then what else there is, of a prediction; nothing of features."""
    if not isinstance(output, InferenceBatch):
        return []
    parts = output.pred_score, output.anomaly_map, output.pred_label, output.pred_mask
    return [part for part in parts if part is not None]


def on_gpu(cell: Cell, folder: Path, shape: tuple[int, ...], _threads: int, *, options: frozenset[str]) -> GpuRun:
    """Run on a GPU; arguments as :data:`RUNTIMES` says, then the options.

    They are those of :class:`GpuRun`. All is in float32 without TF32.

    Raises:
        NotSupportedError: If there is no GPU, or a peer is to run otherwise than its authors have it run.
    """
    if not torch.cuda.is_available():
        msg = "PyTorch finds no CUDA device"
        raise NotSupportedError(msg)
    if options and cell.model != BACKBONE and read_model(cell.model)[0] != OURS:
        msg = "peers are measured with cuda alone"
        raise NotSupportedError(msg)
    if "compile" in options and cell.model == BACKBONE:
        msg = "the bare backbone is not compiled, which takes half a minute each time"
        raise NotSupportedError(msg)
    torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model: Any = load_model(cell, folder / "model.ckpt").cuda()
    if isinstance(model, BareBackbone):
        # Of anomalib's own no graph can be made.
        model.pre_processor = SamePreProcessor(model.pre_processor.transform)
    return GpuRun(model, shape, options)


def differences(cell: Cell, folder: Path, run: GpuRun, batches: list[torch.Tensor]) -> dict[str, float]:
    """Return the most that scores and maps on the GPU differ by from those of the CPU in float32; none of features.

    At most :data:`COMPARED` images of the batches ``(B, 3, H, W)`` are compared.
    """
    if cell.model == BACKBONE:
        return {}
    model, found = load_model(cell, folder / "model.ckpt"), {"score_difference": 0.0, "map_difference": 0.0}
    for images in batches[: max(1, COMPARED // len(batches[0]))]:
        ours = run(images)
        with torch.inference_mode():
            theirs = _parts(model(images[:COMPARED]))
        for name, one, other in zip(found, ours, theirs, strict=False):
            found[name] = max(found[name], float((one[:COMPARED] - other).abs().max()))
    return found


RUNTIMES: dict[str, Callable[[Cell, Path, tuple[int, ...], int], Any]] = {
    "eager": eager,
    "onnxruntime": lambda _, folder, shape, threads: open_onnx(find_export(folder, "onnx", shape[0]), threads),
    "openvino": partial(run_openvino, precision="f32"),
    "openvino-bf16": partial(run_openvino, precision="bf16"),
    **{name: partial(on_gpu, options=frozenset(name.split("-")[1:])) for name in GPU_RUNTIMES},
}
"""Name of a runtime: what loads a model into it as a :data:`Run` or :class:`GpuRun`, from its cell, the cell's folder,
batch, height and width of the images, and the number of threads."""

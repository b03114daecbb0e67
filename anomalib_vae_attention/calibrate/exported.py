"""Exports in ONNX and OpenVINO whose thresholds can be read and written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomalib_vae_attention.anomalib_support.exports import TERMS
from anomalib_vae_attention.anomalib_support.openvino_ir import SECTION, write_openvino
from anomalib_vae_attention.anomalib_support.provenance import PACKAGE, warn_if_newer
from anomalib_vae_attention.common.atomic_files import replacing

Normalisation = tuple[float, float]
"""Slope and offset of the normalisation of raw scores or maps."""
Run = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Takes images ``(B, 3, H, W)`` to scores ``(B,)`` and maps ``(B, 1, H, W)``."""
OUTPUTS = {"image": "pred_score", "pixel": "anomaly_map"}
AT_HALF = "above 0.5"
ADVICE = "Calibrate the checkpoint and export that."


def _require(description: dict[str, str], file: Path) -> dict[str, str]:
    """Return the description of an export of this package, which compares at 0.5; a ``ValueError`` otherwise."""
    version = description.get(f"version_{PACKAGE}")
    if version is None:
        msg = f"{file} is no export of vae_attention that tells what it is: export it again from its checkpoint."
        raise ValueError(msg)
    warn_if_newer(str(file), version)
    if AT_HALF not in description["output_pred_label"] or AT_HALF not in description["output_pred_mask"]:
        msg = f"{file} was exported with sensitivities of its own, which thresholds of a rate know nothing of. {ADVICE}"
        raise ValueError(msg)
    return description


def _unknown(file: Path) -> ValueError:
    return ValueError(f"The thresholds of {file} were not found in its graph. {ADVICE}")


class OnnxExport:
    """An export in ONNX.

    Args:
        file: The ``.onnx`` file.

    Raises:
        ValueError: If it is damaged, or is not one whose thresholds can be written.
    """

    def __init__(self, file: Path) -> None:
        import onnx

        self.file = file
        try:
            self._model = onnx.load(file)
        except Exception as error:
            msg = f"{file} is not an ONNX model, or not all of one: {error}"
            raise ValueError(msg) from error
        self.description = _require({entry.key: entry.value for entry in self._model.metadata_props}, file)
        self._terms = {entry.name: entry for entry in self._model.graph.initializer}
        if any(f"judgement.{level}_{term}" not in self._terms for level in OUTPUTS for term in TERMS):
            raise _unknown(file)

    def write(self, normalisations: dict[str, Normalisation]) -> None:
        """Change the normalisation of ``image`` scores and ``pixel`` maps, in memory."""
        from onnx import numpy_helper

        for level, normalisation in normalisations.items():
            for term, value in zip(TERMS, normalisation, strict=True):
                entry = self._terms[f"judgement.{level}_{term}"]
                entry.CopyFrom(numpy_helper.from_array(np.full(tuple(entry.dims), value, np.float32), entry.name))

    def open(self, threads: int | None = None) -> Run:
        """Return what runs the model in ONNX Runtime, in as many threads as there are cores, or so many."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Threads that wait in a loop take the time of those that read and draw: a tenth of predict's rate.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(self._model.SerializeToString(), options, providers=providers)
        name = session.get_inputs()[0].name
        return lambda image: tuple(session.run(list(OUTPUTS.values()), {name: image}))  # type: ignore[return-value]

    def save(self, target: Path, description: dict[str, str]) -> None:
        """Write it to a file, whole or not at all."""
        import onnx

        with replacing(target) as temporary:
            onnx.helper.set_model_props(self._model, description)
            onnx.save(self._model, temporary)


class OpenVinoExport:
    """An export in OpenVINO's IR.

    Args:
        file: The ``.xml`` file, with its weights beside it.

    Raises:
        ValueError: If it is damaged, or is not one whose thresholds can be written.
    """

    def __init__(self, file: Path) -> None:
        import openvino

        self.file = file
        try:
            self._model = openvino.Core().read_model(file)
        except RuntimeError as error:
            msg = f"{file} is not a model of OpenVINO, or not all of one: {str(error).strip().splitlines()[-1]}"
            raise ValueError(msg) from error
        model = self._model
        names = model.get_rt_info([SECTION]).astype(dict) if model.has_rt_info([SECTION]) else ()
        self.description = _require({name: model.get_rt_info([SECTION, name]).astype(str) for name in names}, file)

    def write(self, normalisations: dict[str, Normalisation]) -> None:
        """Change the normalisation of ``image`` scores and ``pixel`` maps, in memory."""
        from openvino import opset13 as operators

        for level, (slope, offset) in normalisations.items():
            select = self._model.output(OUTPUTS[level]).get_node().input_value(0).get_node()
            clamp = next(
                (value.get_node() for value in select.input_values() if value.get_node().get_type_name() == "Clamp"),
                None,
            )
            if clamp is None:
                raise _unknown(self.file)
            raw = clamp.input_value(0)
            # OpenVINO leaves out what adds 0 or multiplies by 1.
            while raw.get_node().get_type_name() in {"Add", "Multiply"}:
                inputs = raw.get_node().input_values()
                varying = [value for value in inputs if value.get_node().get_type_name() != "Constant"]
                if len(varying) != 1:
                    raise _unknown(self.file)
                raw = varying[0]
            normalised = operators.add(operators.multiply(raw, np.float32(slope)), np.float32(offset))
            clamp.input(0).replace_source_output(normalised.output(0))
        self._model.validate_nodes_and_infer_types()

    def open(self, threads: int | None = None) -> Run:
        """Return what runs the model in OpenVINO, in single precision, in as many threads as it likes, or so many."""
        import openvino

        # Processes of few threads, each of which were bound to the first cores, would share these.
        few = {} if threads is None else {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        options = {"INFERENCE_PRECISION_HINT": "f32", **few}
        compiled = openvino.Core().compile_model(self._model, "CPU", options)

        def run(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            result = compiled(image)
            return result["pred_score"], result["anomaly_map"]

        return run

    def save(self, target: Path, description: dict[str, str]) -> None:
        """Write it to a file and its weights; a kill in the middle leaves no graph beside another's weights."""
        write_openvino(self._model, target, description)


def open_export(file: Path) -> OnnxExport | OpenVinoExport:
    """Open an export that :func:`.find_model` has found, by its ending: a ``ValueError`` if it is something else."""
    return OnnxExport(file) if file.suffix == ".onnx" else OpenVinoExport(file)

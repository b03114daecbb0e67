"""anomalib's ``OpenVINOInferencer`` with this model: single precision, unless somebody asks for another.

The plug-in puts this around anomalib's. Standard library only, as for all that the plug-in imports.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

HINTS = ("INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT")
"""Settings of OpenVINO that choose a precision."""
OURS = b"VaeAttention"
"""What the metadata of our exports hold: the name of the class."""


def in_single_precision(load: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wrap the method that loads a model: OpenVINO's default is bfloat16 where the processor has it.

    A backbone in bfloat16 moves scores, most on fine textures (docs/deploy.md), and with them verdicts.
    """

    def call(self: Any, path: str | Path | tuple[bytes, bytes]) -> Any:  # noqa: ANN401
        config = dict(self.config or {})
        if not any(hint in config for hint in HINTS) and _is_ours(path):
            self.config = config | {"INFERENCE_PRECISION_HINT": "f32"}
        return load(self, path)

    return call


def _is_ours(path: str | Path | tuple[bytes, bytes]) -> bool:
    """Say whether an export is of this model, by its metadata; of a missing file it is not."""
    if isinstance(path, tuple):
        return OURS in path[0]
    file = Path(path)
    file = file.with_suffix(".xml") if file.suffix == ".bin" else file
    return file.is_file() and OURS in file.read_bytes()

"""anomalib's own command with this model: each line once, slips in one line, and paths in any language.

The plug-in puts these functions around anomalib's. Standard library only: it does so while torch is imported.
"""

import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anomalib_vae_attention.common.argument_checks import nearest

PACKAGE = str(Path(__file__).parents[1])
MEANINGLESS = (
    "Importing from timm.models.layers is deprecated",
    "The anomalib.models.components.dinov2 package is deprecated",
    "`LightningModule.configure_optimizers` returned `None`",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "Total length of `list` across ranks is zero",
    r"Found \d+ module\(s\) in eval mode at the start of training",
    "The dirpath has changed from",
    "'pin_memory' argument is set as true but no accelerator is found",
    "The ``compute`` method of metric .* was called before the ``update`` method",
)
"""How warnings begin that other packages raise of each other, or of what is meant here."""
CHATTER = (
    "💡 Tip",
    "GPU available",
    "TPU available",
    "`Trainer(val_check_interval=1.0)`",
    "`Trainer.fit` stopped",
    "The following callbacks returned in",
    "Replaced initializer",
    "The value 'start' is not 0",
    "The value 'end' is less than",
    "Removed ",
    "No unused functions",
    "Skipping constant folding",
    "Applied ",
)
"""How messages of Lightning and ONNX begin that say nothing to the user of a command."""
TALKERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
    "onnx_ir.passes.common.initializer_deduplication",
    "onnx_ir.passes.common.unused_removal",
    "onnxscript.optimizer._constant_folding",
    "onnxscript.rewriter",
    "onnxscript.rewriter.rules.common._collapse_slices",
)
EXTRAS = {
    "openvino": "openvino",
    "onnx": "openvino",
    "onnxscript": "openvino",
    "onnxruntime": "openvino",
    "ray": "ray",
    "pyarrow": "ray",
    "gradio": "web",
    "nncf": "compression",
}
"""Packages that commands may miss, and the extra that brings them."""
LOGGERS = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb", "CometLogger": "comet_ml"}
"""How the names of classes end, and the package that they need."""


def quiet() -> None:
    """Leave out of a command what is :data:`MEANINGLESS` and :data:`CHATTER`, in this process."""
    for beginning in MEANINGLESS:
        warnings.filterwarnings("ignore", beginning)
    for talker in TALKERS:
        logging.getLogger(talker).addFilter(_says_something)


def _says_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(CHATTER)


def logging_once(configure: Callable[..., None]) -> Callable[..., None]:
    """Wrap anomalib's ``configure_logger``, which makes two handlers: rich is for terminals, whole lines for files."""

    def call(*args, **options) -> None:
        configure(*args, **options)
        quiet()
        root = logging.getLogger()
        rich = [handler for handler in root.handlers if type(handler).__name__ == "RichHandler"]
        plain = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
        if rich and plain:
            for handler in plain if sys.stdout.isatty() else rich:
                root.removeHandler(handler)

    return call


def what_is_missing(error: ModuleNotFoundError) -> str:
    """Return the line that names a package and the extra that brings it; empty for a package that none brings."""
    name = error.name or next((name for name in EXTRAS if name in str(error).lower()), "")
    return f"{name} is not installed: pip install '.[{EXTRAS[name]}]'" if name in EXTRAS else ""


def in_one_line(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap anomalib's ``main``: our own errors, those of files, and missing extras are a line and exit code 1."""

    def call(*args, **options) -> Any:  # noqa: ANN401
        try:
            return main(*args, **options)
        except (ModuleNotFoundError, OSError, RuntimeError, TypeError, ValueError) as error:
            ours = _frames(error)
            missing = what_is_missing(error) if isinstance(error, ModuleNotFoundError) else ""
            if not any(ours) or not (missing or ours[-1] or isinstance(error, OSError)):
                raise
            print(f"anomalib: {missing or error}", file=sys.stderr)
            sys.exit(1)

    return call


def _frames(error: BaseException) -> list[bool]:
    """Say of each frame that an error went through, the innermost last, whether it is in this package's own work."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return [file.startswith(PACKAGE) and file != __file__ for file in files]


def with_own_error(refuse: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap jsonargparse's refusal of a value of no type of a union: an argument that we refuse is told by our error."""

    def call(subtypes: Any, value: Any, errors: list[Exception]) -> Any:  # noqa: ANN401
        for error in errors:
            if any(_frames(error)[-1:]):
                raise error
        return refuse(subtypes, value, errors)

    return call


def refuse_slip(cls: Any, name: str, list_paths: Callable[[Any], Iterable[str]], snake_case: dict[str, str]) -> None:  # noqa: ANN401
    """End with a line where a class, ``name`` as typed, was misspelt, or needs a package that is missing.

    ``cls`` is the kind of class that is wanted: names of anomalib's models and data only are compared, with those whose
    dotted paths ``list_paths`` gives for it, and the other names in ``snake_case``.
    """
    package = next((package for ending, package in LOGGERS.items() if name.endswith(ending)), None)
    message = ""
    if package and find_spec(package) is None:
        message = f"{name} needs a package that is not installed: pip install {package}"
    elif (
        getattr(cls, "__name__", "") in {"AnomalibModule", "AnomalibDataModule"}
        and "." not in name
        and not Path(name).exists()
    ):
        known = {path.rpartition(".")[2] for path in list_paths(cls)}
        advice = nearest(name, known | {short for short, full in snake_case.items() if full in known}, 0.8)
        message = advice and f"there is no {name!r}.{advice}"
    if message:
        print(f"anomalib: {message}", file=sys.stderr)
        sys.exit(2)


def not_printable(_original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Replace anomalib's check of paths, which takes every letter outside ASCII for one that cannot be printed."""
    return lambda path: not str(path).isprintable()


def with_paths_as_objects(make: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap anomalib's ``make_tabular_dataset``, which puts paths into columns that pandas 3 keeps for texts."""

    def call(samples: Any, *args, **options) -> Any:  # noqa: ANN401
        import pandas as pd

        table = pd.DataFrame(samples)
        return make(
            table.astype({name: object for name in ("image_path", "mask_path") if name in table}), *args, **options
        )

    return call

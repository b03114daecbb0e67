"""Make anomalib know the model ``vae_attention`` without anybody importing this package.

anomalib has no plug-in interface: it knows the models that are imported. ``import torch``, which anomalib cannot do
without, calls :func:`register` through the entry-point group ``torch.backends``; that asks to be told when
three of anomalib's modules are imported, and each of them is then extended:

==================== ==================================================================================
module               extension
==================== ==================================================================================
``anomalib.models``  ``VaeAttention`` and ``vae_attention`` as attributes, imported on first use;
                     ``list_models`` and ``get_model`` see the class; ``ALLOWED_MODULES`` lets
                     ``get_model({"class_path": "anomalib_vae_attention.VaeAttention"})`` through
``anomalib.data``    the datamodules as attributes, imported on first use, for ``get_datamodule``
``anomalib.cli.cli`` class names on the command line and in config files see all these classes, and
                     ``vae_attention`` stands for ``VaeAttention``, ``normal_quantile`` for
                     ``NormalQuantile``
==================== ==================================================================================

What this file relies on of anomalib's internals, and of jsonargparse's, is listed in :data:`.INTERNALS`. What a
later release renames is reported in a warning and left out; everything else goes on working, and the dotted path
``anomalib_vae_attention.VaeAttention`` needs none of it on the command line. A fault in here must not
make ``import torch`` fail, which is why only the standard library is imported at the top.

Two more are mended. ``anomalib.engine.engine``: a run goes on where the link ``latest`` beside it cannot be set, or is
a real folder that a prediction without training has left. ``anomalib.deploy``: its ``OpenVINOInferencer`` computes this
model in single precision, unless it is told otherwise.

``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` keeps torch from calling any of it.
"""

import functools
import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = __name__.partition(".")[0]
MODEL_NAME = "vae_attention"
MODEL_CLASS = "VaeAttention"
DATA_CLASSES = ("EmbeddedAD", "OneClassMNIST")
SNAKE_CASE = {MODEL_NAME: MODEL_CLASS, "normal_quantile": "NormalQuantile"}
"""Names that the command line and config files take for a class, besides its own."""

_MARK = "_extended_by_vae_attention"

logger = logging.getLogger(__name__)


@functools.cache
def _warn(message: str) -> None:
    """Log a warning, the same one only once; `warnings.warn` would raise under ``-W error``."""
    logger.warning("%s: %s", PACKAGE, message)


@contextmanager
def _fault_is_warning(consequence: str) -> Generator[None, None, None]:
    """Keep a fault in here out of the import, or the function of anomalib, in the middle of which it occurs."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whoever meets it may not even want this model
        _warn(f"{consequence}: {error!r}")


@_fault_is_warning(f"anomalib will not find {MODEL_NAME} by its name")
def register() -> None:
    """Ask to be told when the modules of anomalib that need extending are imported.

    torch calls this at the end of its own import. It never raises, can be called again, and brings a module
    that is already imported up to date (so also after a reload of that module).
    """
    # Here and not at the top: torch reports a failing import of this module as its own failure.
    from wrapt import register_post_import_hook

    # A program that holds Python has no arguments, perhaps.
    if Path(*getattr(sys, "argv", ())[:1]).stem == "anomalib":
        _support().quiet()
    for module_name, extend in _EXTENSIONS.items():
        register_post_import_hook(functools.partial(_when_finished, extend=extend), module_name)


@_fault_is_warning(f"anomalib.models could not be extended with {MODEL_NAME}")
def _extend_models(namespace: dict[str, Any]) -> None:
    """Extend ``anomalib.models``: attributes, the two functions that look models up, and the allow-list."""
    # The snake-case name is an attribute too because get_model() takes a bare class_path for one.
    _add_lazy_attributes(namespace, {MODEL_CLASS: MODEL_CLASS, MODEL_NAME: MODEL_CLASS})
    # Both go through the imported subclasses of AnomalibModule; get_model() calls the second for a plain name.
    _wrap(namespace, "list_models", _importing_first(MODEL_CLASS))
    _wrap(namespace, "_get_model_class_by_name", _importing_first(MODEL_CLASS))
    allowed = namespace.get("ALLOWED_MODULES")
    if isinstance(allowed, set):
        allowed.add(PACKAGE)
    else:
        _warn(f"no set ALLOWED_MODULES in anomalib.models: get_model() will not take '{PACKAGE}.{MODEL_CLASS}'")


@_fault_is_warning(f"anomalib.data could not be extended with {', '.join(DATA_CLASSES)}")
def _extend_data(namespace: dict[str, Any]) -> None:
    """Extend ``anomalib.data``, where ``get_datamodule`` takes a class name for an attribute."""
    _add_lazy_attributes(namespace, {name: name for name in DATA_CLASSES})
    support = _support()
    _wrap(vars(import_module("anomalib.data.utils.path")), "contains_non_printable_characters", support.not_printable)
    tabular = vars(import_module("anomalib.data.datasets.image.tabular"))
    _wrap(tabular, "make_tabular_dataset", support.with_paths_as_objects)


@_fault_is_warning(f"the command line could not be extended with {MODEL_NAME}")
def _extend_command_line(namespace: dict[str, Any]) -> None:
    """Extend the place where jsonargparse turns a class name into a class, and what the command prints.

    Arguments, config files and ``--model.help`` all end up there. A program that does not import anomalib's command
    line keeps its jsonargparse untouched.
    """
    type_hints = vars(import_module("jsonargparse._typehints"))
    _wrap(type_hints, "get_all_subclass_paths", _importing_first(MODEL_CLASS, *DATA_CLASSES))
    _wrap(type_hints, "resolve_class_path_by_name", _knowing_snake_case)
    _wrap(type_hints, "raise_union_unexpected_value", _support().with_own_error)
    _wrap(namespace, "configure_logger", _support().logging_once)
    _wrap(namespace, "main", _support().in_one_line)


def _support() -> Any:  # noqa: ANN401
    return import_module(f"{PACKAGE}.anomalib_support.command_line")


@_fault_is_warning("a folder called latest, or a disk without links, may stop a training")
def _extend_engine(namespace: dict[str, Any]) -> None:
    """Mend the place where anomalib makes the folder of a run and the link to it."""
    link = import_module(f"{PACKAGE}.anomalib_support.latest_link")
    _wrap(namespace, "create_versioned_dir", link.without_link)


@_fault_is_warning("OpenVINOInferencer may compute in bfloat16, OpenVINO's default")
def _extend_inferencer(namespace: dict[str, Any]) -> None:
    """Let anomalib's inferencer compute this model in single precision, unless its user asks for another."""
    inferencer = namespace["OpenVINOInferencer"]
    methods = {"__name__": inferencer.__name__, "load_model": inferencer.load_model}
    _wrap(methods, "load_model", import_module(f"{PACKAGE}.anomalib_support.inferencer").in_single_precision)
    inferencer.load_model = methods["load_model"]


_EXTENSIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "anomalib.models": _extend_models,
    "anomalib.data": _extend_data,
    "anomalib.cli.cli": _extend_command_line,
    "anomalib.engine.engine": _extend_engine,
    "anomalib.deploy.inferencers.openvino_inferencer": _extend_inferencer,
}


@_fault_is_warning(f"a module of anomalib could not be extended with {MODEL_NAME}")
def _when_finished(module: ModuleType, extend: Callable[[dict[str, Any]], None]) -> None:
    """Extend a module as soon as its body has run.

    Where a module of anomalib is what a program imports first, it is that module which imports torch, and this is
    called while it is half done. Its names can only be replaced later, and the first moment at which that matters
    is the first use of one of its attributes from outside.
    """
    if _is_initialising(vars(module)):
        _extend_on_first_use(module, extend)
    else:
        extend(vars(module))


def _is_initialising(namespace: dict[str, Any]) -> bool:
    """Say whether the import system still runs the body of the module with this namespace."""
    return getattr(namespace.get("__spec__"), "_initializing", False)


def _extend_on_first_use(module: ModuleType, extend: Callable[[dict[str, Any]], None]) -> None:
    """Give a module a class that extends it on the first attribute access after its import, then steps back."""
    plain_class = type(module)
    # Taken now: from within __getattribute__, asking the module for it would ask for it again.
    namespace = vars(module)
    is_pending = True

    class ExtendedOnFirstUse(plain_class):  # type: ignore[misc, valid-type]
        """A module that waits for its own import to end."""

        def __getattribute__(self, name: str) -> Any:  # noqa: ANN401
            """Look an attribute up, extending the module first once that is possible."""
            nonlocal is_pending
            if is_pending and not _is_initialising(namespace):
                # In this order: another thread must not see the module without the extension. Two threads
                # may both extend it, which is harmless.
                extend(namespace)
                is_pending = False
                if type(self) is ExtendedOnFirstUse:
                    self.__class__ = plain_class  # type: ignore[assignment]
            # Not super(): the module may have stepped back, just now or in another thread.
            return plain_class.__getattribute__(self, name)

    module.__class__ = ExtendedOnFirstUse


def _add_lazy_attributes(namespace: dict[str, Any], names: dict[str, str]) -> None:
    """Let a module answer for public names of this package, by the names given here (PEP 562)."""
    inherited = namespace.get("__getattr__")
    if hasattr(inherited, _MARK):
        return

    def module_getattr(name: str) -> Any:  # noqa: ANN401
        if name in names:
            return getattr(import_module(PACKAGE), names[name])
        if inherited is not None:
            return inherited(name)
        msg = f"module {namespace['__name__']!r} has no attribute {name!r}"
        raise AttributeError(msg, name=name, obj=sys.modules.get(namespace["__name__"]))

    setattr(module_getattr, _MARK, True)
    namespace["__getattr__"] = module_getattr


def _wrap(namespace: dict[str, Any], name: str, wrapper: Callable[[Callable], Callable]) -> None:
    """Replace a function of a module, once; a missing one is a warning that names it."""
    function = namespace.get(name)
    if not callable(function):
        _warn(f"no function {name} in {namespace['__name__']}: {MODEL_NAME} may not be found by its name")
    elif not hasattr(function, _MARK):
        # A plain function under the same name, not a proxy: that can still be pickled.
        wrapped = functools.wraps(function)(wrapper(function))
        setattr(wrapped, _MARK, True)
        namespace[name] = wrapped


def _importing_first(*class_names: str) -> Callable[[Callable], Callable]:
    """Make a wrapper for a function that goes through imported subclasses: it gets to see ours."""

    def wrapper(function: Callable) -> Callable:
        def call(*args, **kwargs) -> Any:  # noqa: ANN401
            for class_name in class_names:
                _import_class(class_name)
            return function(*args, **kwargs)

        return call

    return wrapper


def _knowing_snake_case(resolve: Callable) -> Callable:
    """Wrap jsonargparse's resolution of class names: a snake-case name, unknown to it, stands for its class."""

    def call(cls: Any, name: str, *args, **kwargs) -> str:  # noqa: ANN401
        class_path = resolve(cls, name, *args, **kwargs)
        if name not in SNAKE_CASE or class_path != name:
            if class_path == name:
                list_paths = import_module("jsonargparse._typehints").get_all_subclass_paths
                _support().refuse_slip(cls, name, list_paths, SNAKE_CASE)
            return class_path
        found = resolve(cls, SNAKE_CASE[name], *args, **kwargs)
        # Unresolved where a class of another kind is wanted; the error message then names what was typed.
        return class_path if found == SNAKE_CASE[name] else found

    return call


def _import_class(class_name: str) -> None:
    """Import one of this package's classes, if possible: it may be another model that is wanted."""
    with _fault_is_warning(f"{PACKAGE}.{class_name} could not be imported"):
        getattr(import_module(PACKAGE), class_name)

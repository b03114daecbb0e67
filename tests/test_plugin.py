"""anomalib finds the model by its name, and is left in peace where the plug-in fails.

What a program imports first decides how the plug-in gets to work, so each case is a fresh Python. Starting one that
imports anomalib takes seconds: each makes many checks.
"""

from pathlib import Path

import pytest
from fresh_python import INSTALLED, PACKAGE, run_python

pytestmark = INSTALLED

# Each goes on with another question: the first one answered imports the class, and makes the rest easy.
FIRST_IMPORTS = {
    "models": "from anomalib.models import VaeAttention, get_model",
    "one model": "import anomalib.models.image.padim\nanomalib.models.get_model('vae_attention')",
    "data": "from anomalib.data import EmbeddedAD",
    "engine": "import anomalib.engine, anomalib.models\nanomalib.models.get_model({'class_path': 'vae_attention'})",
    "this package": "from anomalib_vae_attention import VaeAttention",
}

NAMES = """
import pickle
import sys
from types import ModuleType

from anomalib.models import UnknownModelError, get_model, list_models

assert "padim" in list_models()
assert "vae_attention" in list_models(), list_models()
assert "VaeAttention" in list_models(case="pascal")

import anomalib.data
import anomalib.models
import anomalib_vae_attention

expected = anomalib_vae_attention.VaeAttention
assert anomalib.models.VaeAttention is expected
assert anomalib.data.EmbeddedAD is anomalib_vae_attention.EmbeddedAD
assert type(anomalib.models) is ModuleType
assert type(anomalib.data) is ModuleType
assert pickle.loads(pickle.dumps(anomalib.models.VaeAttention)) is expected
assert pickle.loads(pickle.dumps(list_models)) is list_models

for name in ("vae_attention", "VaeAttention"):
    assert type(get_model(name)) is expected, name
for path in ("vae_attention", "VaeAttention", "anomalib_vae_attention.VaeAttention", "anomalib.models.VaeAttention"):
    model = get_model({"class_path": path, "init_args": {"latent_dim": 16}})
    assert type(model) is expected, path
    assert model.hparams["latent_dim"] == 16, path

import anomalib.models.image
assert not hasattr(anomalib.models.image, "VaeAttention")
for unknown in ({"class_path": "anomalib_vae_attention.data.EmbeddedAD"}, {"class_path": "Unknown"}, "unknown"):
    try:
        get_model(unknown)
    except UnknownModelError:
        continue
    raise SystemExit(f"{unknown} was taken for a model")
try:
    anomalib.models.Padin
except AttributeError as error:
    assert str(error) == "module 'anomalib.models' has no attribute 'Padin'", error
else:
    raise SystemExit("an attribute that nobody defined")
"""


@pytest.mark.parametrize("first_import", FIRST_IMPORTS.values(), ids=FIRST_IMPORTS)
def test_names_whatever_is_imported_first(first_import: str, tmp_path: Path) -> None:
    """Every name leads to the one class, whatever the program imports first."""
    process = run_python(tmp_path, first_import + NAMES)
    assert f"{PACKAGE}: " not in process.stderr, process.stderr


def test_torch_first(tmp_path: Path) -> None:
    """With torch loaded: threads, every name, no early import, the benchmark, and registering again."""
    before = """
import importlib, sys, threading
import anomalib, lightning
assert "torch" in sys.modules and "anomalib.models" not in sys.modules
importlib.import_module("anomalib.models")
assert "anomalib_vae_attention.lightning_model" not in sys.modules
seen = []
threads = [threading.Thread(target=lambda: seen.append(sys.modules["anomalib.models"].list_models())) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(seen) == 8 and all("vae_attention" in models for models in seen), seen
assert "anomalib_vae_attention.data" not in sys.modules
"""
    after = """
from anomalib.pipelines.benchmark.generator import BenchmarkJobGenerator
for prefix in ("", "anomalib_vae_attention."):
    parts = {"model": "VaeAttention", "data": "EmbeddedAD"}
    config = {"seed": 1, **{part: {"class_path": prefix + name} for part, name in parts.items()}}
    job, = BenchmarkJobGenerator("cpu").generate_jobs(config, None)
    assert type(job.model) is anomalib_vae_attention.VaeAttention
    assert type(job.datamodule) is anomalib_vae_attention.EmbeddedAD

from anomalib_vae_attention import plugin
wrapped = anomalib.models.list_models
importlib.reload(plugin).register()
plugin.register()
assert anomalib.models.list_models is wrapped
assert not hasattr(wrapped.__wrapped__, "__wrapped__")

importlib.reload(anomalib.models)
assert "anomalib_vae_attention" not in anomalib.models.ALLOWED_MODULES
plugin.register()
assert "anomalib_vae_attention" in anomalib.models.ALLOWED_MODULES
assert anomalib.models.VaeAttention is anomalib_vae_attention.VaeAttention
"""
    run_python(tmp_path, before + NAMES + after)


def test_registering_never_raises(tmp_path: Path) -> None:
    """Not even where Python makes errors of warnings."""
    script = """
import sys
sys.modules["wrapt"] = None
from anomalib_vae_attention.plugin import register
register()
"""
    assert f"{PACKAGE}: " in run_python(tmp_path, script, "-W", "error").stderr


def test_plugin_module_needs_the_standard_library_only(tmp_path: Path) -> None:
    """Importing the plug-in module loads nothing that is not Python's own."""
    script = """
import sys
before = set(sys.modules)
import anomalib_vae_attention.plugin
loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
assert loaded == {"anomalib_vae_attention"}, loaded
"""
    run_python(tmp_path, script)


def test_python_without_torch_does_not_load_the_plugin(tmp_path: Path) -> None:
    """A program without torch does not pay."""
    script = "import json, logging, sys\nassert not {'anomalib_vae_attention', 'wrapt', 'torch'} & set(sys.modules)"
    run_python(tmp_path, script)


def test_import_torch_gains_little(tmp_path: Path) -> None:
    """`import torch` gains a small share of its own time and no module of anomalib, or nothing if so told."""
    script = """
import sys, time
start = time.process_time()
import torch
imported = time.process_time()
assert "anomalib_vae_attention.plugin" not in sys.modules
before = set(sys.modules)
from anomalib_vae_attention.plugin import register
register()
gain, whole = time.process_time() - imported, imported - start
loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
assert loaded <= {"anomalib_vae_attention", "wrapt"}, loaded
print(f"import torch: {whole * 1e3:.1f} ms, the plug-in: {gain * 1e3:.1f} ms of processor time")
# A share, not a number of milliseconds: the machine may be slow or busy.
assert gain < 0.02 * whole, (gain, whole)
"""
    print(run_python(tmp_path, script, TORCH_DEVICE_BACKEND_AUTOLOAD="0").stdout)

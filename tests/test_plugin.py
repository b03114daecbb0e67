"""anomalib finds the model by its name, and is left in peace where the plug-in fails.

What a program imports first decides how the plug-in gets to work, so each case is a fresh Python. Starting one that
imports anomalib takes seconds: each makes many checks.
"""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

PACKAGE = "anomalib_vae_attention"

if PACKAGE not in {entry_point.name for entry_point in entry_points(group="torch.backends")}:
    pytest.skip(f"{PACKAGE} is not installed: no such entry point in torch.backends", allow_module_level=True)


def run_python(directory: Path, script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh Python, away from the checkout, and demand that it got to its end.

    Args:
        directory (Path): Working directory of the process; its home is there too.
        script (str): Code to run.
        *options (str): Options of the interpreter.
        **environment (str): Environment variables to set besides the inherited ones.

    Returns:
        subprocess.CompletedProcess[str]: The process, with its output.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    process = subprocess.run(
        [sys.executable, *options, "-c", f"{script}\nprint('reached the end')"],
        cwd=directory,
        env={**inherited, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("reached the end\n"), process.stdout
    return process


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


COMMAND_LINE = """
import contextlib, io, sys
from pathlib import Path

def run(*arguments):
    from anomalib.cli.cli import main
    sys.argv = ["anomalib", *arguments]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert code == 0, (arguments, errors.getvalue())
    return output.getvalue()

def parse(*arguments):
    import yaml
    return yaml.safe_load(run(*arguments, "--print_config"))
"""


def test_command_line(tmp_path: Path) -> None:
    """Every spelling, on the command line and in a config file, means the same in every subcommand."""
    configs = {
        "path": "model: {class_path: vae_attention, init_args: {latent_dim: 16}}",
        "turned": "model: {init_args: {latent_dim: 16}, class_path: VaeAttention}\ndata: {class_path: EmbeddedAD}",
        "plain": "model: vae_attention\ndata: EmbeddedAD",
    }
    for name, text in configs.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    script = """
expected = parse("train", "--model", "vae_attention")["model"]
assert expected["class_path"] == "anomalib_vae_attention.VaeAttention", expected
for arguments in (
    ["--model=vae_attention"],
    ["--model", "VaeAttention"],
    ["--model=VaeAttention"],
    ["--model", "anomalib_vae_attention.VaeAttention"],
    ["--model.class_path", "vae_attention"],
    ["--model.class_path=VaeAttention"],
    ["--config", "plain.yaml"],
):
    assert parse("train", *arguments)["model"] == expected, arguments

expected["init_args"]["latent_dim"] = 16
for arguments in (
    ["--model", "vae_attention", "--model.latent_dim", "16"],
    ["--model", "vae_attention", "--model.init_args.latent_dim=16"],
    ["--model", "vae_attention", "--model.latent_dim", "16", "--model", "VaeAttention"],
    ["--config", "path.yaml"],
    ["--config", "path.yaml", "--model", "vae_attention"],
    ["--config", "turned.yaml"],
    ["--config", "plain.yaml", "--model.latent_dim", "16"],
    ["--model", "vae_attention", "--model.latent_dim", "16", "--config", "plain.yaml"],
):
    assert parse("train", *arguments)["model"] == expected, arguments

data = {"class_path": "anomalib_vae_attention.EmbeddedAD"}
for subcommand in ("train", "fit", "validate", "test", "predict", "export"):
    for arguments in (
        ["--model", "vae_attention", "--model.latent_dim=16", "--data", "EmbeddedAD"],
        ["--config", "turned.yaml"],
    ):
        config = parse(subcommand, *arguments)
        assert config["model"] == expected, (subcommand, arguments)
        assert config["data"].items() >= data.items(), (subcommand, arguments)
for arguments in (["--config", "plain.yaml"], ["--config", "path.yaml", "--data", "anomalib_vae_attention.EmbeddedAD"]):
    assert parse("fit", *arguments)["data"].items() >= data.items(), arguments

for arguments in (["--model.help", "vae_attention"], ["--model.help=vae_attention"], ["--model.help", "VaeAttention"]):
    assert "--model.latent_dim" in run("train", *arguments), arguments
assert "anomalib_vae_attention.VaeAttention" in "".join(run("train", "--help").split()).replace("│", "")
assert "--config" in run("benchmark", "--help")
assert parse("train", "--model", "Padim", "--data", "MVTecAD")["model"]["class_path"] == "anomalib.models.Padim"

from anomalib.cli import AnomalibCLI
from anomalib_vae_attention import EmbeddedAD, VaeAttention
cli = AnomalibCLI(["fit", "--model", "vae_attention", "--data", "EmbeddedAD"], run=False)
assert type(cli.model) is VaeAttention
assert type(cli.datamodule) is EmbeddedAD

for arguments in (["train", "--model", "vae_attentio"], ["train", "--model", "Padim", "--data", "vae_attention"]):
    try:
        parse(*arguments)
    except AssertionError as error:
        assert f"Expected a dot import path string: {arguments[-1]}" in str(error), error
    else:
        raise SystemExit(f"{arguments} were taken")
"""
    process = run_python(tmp_path, COMMAND_LINE + script)
    assert f"{PACKAGE}: " not in process.stderr, process.stderr


def test_without_hooks_the_dotted_path_works(tmp_path: Path) -> None:
    """Where the hooks cannot be set, anomalib is as it was, and a warning says why."""
    before = "import sys\nsys.modules['wrapt'] = None\n"
    script = """
import torch
from anomalib.models import Padim, get_model, list_models
assert "padim" in list_models()
assert "vae_attention" not in list_models()
model = parse("train", "--model", "anomalib_vae_attention.VaeAttention", "--model.latent_dim", "16")["model"]
assert model["init_args"]["latent_dim"] == 16
from anomalib_vae_attention import VaeAttention
assert type(get_model("vae_attention")) is VaeAttention
"""
    process = run_python(tmp_path, before + COMMAND_LINE + script)
    warnings = [line for line in process.stderr.splitlines() if line.startswith(f"{PACKAGE}: ")]
    assert len(warnings) == 1, process.stderr
    assert "wrapt" in warnings[0], warnings


def test_a_renamed_internal_costs_no_more_than_itself(tmp_path: Path) -> None:
    """What a later release might rename is named in a warning, and all that does not need it works."""
    script = """
from importlib.machinery import SourceFileLoader
renamed = ("ALLOWED_MODULES", "_get_model_class_by_name", "get_all_subclass_paths", "resolve_class_path_by_name")
get_code = SourceFileLoader.get_code

def get_renamed_code(loader, name):
    if name != "anomalib.models" and not name.startswith("jsonargparse."):
        return get_code(loader, name)
    source = loader.get_source(name)
    for function in renamed:
        source = source.replace(function, "renamed_" + function)
    return compile(source, loader.path, "exec", dont_inherit=True)

SourceFileLoader.get_code = get_renamed_code
import anomalib.models
from anomalib.models import get_model, list_models

# A model of ours that cannot be imported must not cost the others.
sys.modules["anomalib_vae_attention.lightning_model"] = None
assert "padim" in list_models()
del sys.modules["anomalib_vae_attention.lightning_model"]

assert not hasattr(anomalib.models, "ALLOWED_MODULES")
assert "vae_attention" in list_models()
assert type(get_model({"class_path": "VaeAttention"})) is anomalib.models.VaeAttention
assert anomalib.models.renamed__get_model_class_by_name("padim") is anomalib.models.Padim
assert parse("train", "--model", "Padim")["model"]["class_path"] == "anomalib.models.Padim"
parse("train", "--model", "anomalib_vae_attention.VaeAttention")
"""
    process = run_python(tmp_path, COMMAND_LINE + script)
    warnings = [line for line in process.stderr.splitlines() if f"{PACKAGE}: " in line]
    for name in (
        "ALLOWED_MODULES",
        "_get_model_class_by_name",
        "get_all_subclass_paths",
        "resolve_class_path_by_name",
        "VaeAttention could not be imported",
    ):
        assert sum(name in warning for warning in warnings) == 1, (name, process.stderr)


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

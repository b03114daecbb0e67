"""anomalib's command line finds the model by its name, and is left in peace where the plug-in fails."""

from pathlib import Path

from fresh_python import INSTALLED, PACKAGE, run_python

pytestmark = INSTALLED

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
    lines = run("train", *arguments).splitlines()
    # Ours come before anomalib's, with what they mean, and all of it can be read.
    shown = [line.split()[0] for line in lines if line.startswith("  --model.")]
    assert shown.index("--model.latent_dim") < shown.index("--model.pre_processor"), shown
    assert any("Number of latents" in line for line in lines)
    assert len(lines) <= 200, len(lines)
assert "anomalib_vae_attention.VaeAttention" in "".join(run("train", "--help").split()).replace("│", "")
assert "--config" in run("benchmark", "--help")
assert parse("train", "--model", "Padim", "--data", "MVTecAD")["model"]["class_path"] == "anomalib.models.Padim"

from anomalib.cli import AnomalibCLI
from anomalib_vae_attention import EmbeddedAD, VaeAttention
cli = AnomalibCLI(["fit", "--model", "vae_attention", "--data", "EmbeddedAD"], run=False)
assert type(cli.model) is VaeAttention
assert type(cli.datamodule) is EmbeddedAD

for arguments, message in (
    (["train", "--model", "vae_attentio"], "there is no 'vae_attentio'. Did you mean 'vae_attention'?"),
    (["train", "--model", "Padim", "--data", "vae_attention"], "Expected a dot import path string: vae_attention"),
):
    try:
        parse(*arguments)
    except AssertionError as error:
        assert message in str(error), error
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

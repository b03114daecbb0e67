"""The table of arguments: none is ignored, none is out of range, and the documentation groups them alike."""

import inspect
import re

import pytest

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.arguments import ALL, ARGUMENTS, IMAGE, check_arguments
from anomalib_vae_attention.lightning_model import DEFAULTS

OUT_OF_RANGE = {
    "vae": ["pixel", None, 3],
    "reference": ["mean", None],
    "latent_dim": [0, -1, 1.5, "8", True],
    "max_exemplars": [0, 2.5, "3", None],
    "input_size": [(64,), (64, 0), (64, 64, 3), 64, "64", (), (1.5, 2)],
    "backbone": [5, None],
    "layers": [5, [1], None],
    "pre_trained": ["maybe", None],
    "cache_features": ["sometimes", None, 7],
    "attention": ["grad", None],
    "attention_layers": [5, [1]],
    "channels": [0, 2, "grey"],
    "likelihood": ["nonsense", ""],
    "learning_rate": [0.0, -1.0, float("nan"), float("inf"), "fast", None],
    "kl_weight": [-5, float("nan"), float("inf"), "2"],
    "kl_warmup_steps": [-1, 0.5],
    "samples": [0, 1.5],
    "seed": [-1, "0"],
    "widths": [[], [0], 64, (8, 1.5)],
    "hidden_dim": [0, None],
}
ANOTHER = {
    "backbone": "resnet18",
    "layers": ["blocks.1"],
    "pre_trained": False,
    "cache_features": True,
    "attention": "latent",
    "attention_layers": ["conv2"],
    "channels": 3,
    "likelihood": "gaussian",
    "learning_rate": 1e-4,
    "kl_weight": 2,
    "kl_warmup_steps": 5,
    "samples": 9,
    "seed": 1,
    "widths": (8, 8),
    "hidden_dim": 16,
}
"""A good value, not the default, of each argument that does not belong to every VAE."""
HEADINGS = {"Shared": set(ALL), "Feature VAE": {"feature"}, "Image VAE": set(IMAGE)}


def test_every_argument_is_in_the_table() -> None:
    """The table has all arguments but anomalib's own, and so has each table here what it should."""
    components = {"pre_processor", "post_processor", "evaluator", "visualizer"}
    assert set(ARGUMENTS) == set(DEFAULTS) - components == set(OUT_OF_RANGE)
    assert {name for name, argument in ARGUMENTS.items() if set(argument.vaes) != set(ALL)} == set(ANOTHER)


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_out_of_range(name: str) -> None:
    """A value out of range is an error that names the argument, whichever VAE is chosen."""
    for vae in ALL:
        for value in OUT_OF_RANGE[name]:
            with pytest.raises(ValueError, match=name):
                check_arguments({**DEFAULTS, "vae": vae, name: value}, DEFAULTS)


@pytest.mark.parametrize("name", ANOTHER)
def test_another_vaes_argument(name: str) -> None:
    """An argument of another VAE is an error that names it and the VAEs it belongs to; its default is none."""
    for vae in ALL:
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in DEFAULTS.items()}
        check_arguments({**listed, "vae": vae}, DEFAULTS)
        given = {**DEFAULTS, "vae": vae, name: ANOTHER[name]}
        if vae in ARGUMENTS[name].vaes:
            check_arguments(given, DEFAULTS)
            continue
        message = rf"^{name}=.* belongs to vae=.*, and has no effect with vae='{vae}': leave it out"
        with pytest.raises(ValueError, match=message) as error:
            check_arguments(given, DEFAULTS)
        assert all(f"vae={owner!r}" in str(error.value) for owner in ARGUMENTS[name].vaes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kl_weight": -5, "likelihood": "nonsense", "attention_layers": ["nope"]}, "likelihood must be one of"),
        ({"attention_layers": ["conv2"]}, "attention_layers=.* belongs to vae='resnet18' or vae='conv'"),
        ({"vae": "conv", "pre_trained": False}, "pre_trained=False belongs to vae='feature'"),
        ({"vae": "resnet18", "widths": (8, 8)}, "widths=.* belongs to vae='conv'"),
        ({"backbone": "no_such_model"}, "backbone='no_such_model'"),
        ({"layers": "blocks.9"}, r"layers=\['blocks.9'\]"),
        ({"layers": []}, r"layers=\[\]"),
        ({"latent_dim": 500}, "latent_dim must be from 1 to"),
        ({"vae": "conv", "attention_layers": ["nope"]}, "attention_layers: 'nope' is no layer"),
    ],
)
def test_the_model_refuses_them(arguments: dict, message: str) -> None:
    """The anomalib model checks its arguments, and names what the chosen backbone or network does not have."""
    with pytest.raises(ValueError, match=message):
        VaeAttention(**arguments)


def test_the_documentation_groups_them_alike() -> None:
    """The headings of the docstring's arguments are those of the table."""
    documented = inspect.getdoc(VaeAttention).partition("\nArgs:\n")[2].partition("\nRaises:\n")[0]
    heading, groups = "", {}
    for name in re.findall(r"^    (\w[\w ]*):", documented, re.MULTILINE):
        if name in HEADINGS:
            heading = name
        else:
            groups[name] = heading
    assert set(groups) == set(DEFAULTS)
    for name, argument in ARGUMENTS.items():
        assert set(argument.vaes) <= HEADINGS[groups[name]], name
        assert groups[name] == "Shared" or set(argument.vaes) != set(ALL), name

"""Runs side by side: the losses and gradients of the Lightning modules, and nothing lost when they are stopped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from stacked import convolution
from stacked import runs as stacked_runs
from stacked.draws import Draws, draw, unpack
from stacked.layout import arrange, restore
from stacked.runs import StackedRuns
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.dsprites import models
from anomalib_vae_attention.dsprites.attention_loss import AttentionDisentanglement
from anomalib_vae_attention.dsprites.models import BetaVAE, FactorVAE

ATTENTIONS: dict[str, Callable[[], AttentionDisentanglement | None]] = {
    "none": lambda: None,
    "apart": lambda: AttentionDisentanglement(40.0, "all", "conv3", normalise=True, both_signs=True),
    "printed": lambda: AttentionDisentanglement(3.0, "random", "conv4"),
    "mean of top2": lambda: AttentionDisentanglement(3.0, "top2", "conv2", "mean", warmup_steps=4),
    "first order": lambda: AttentionDisentanglement(5.0, "all", "conv1", second_order=False),
}


class Still(torch.optim.SGD):
    """An optimiser that only clears the gradients, so that they can be looked at."""

    def step(self, closure: object = None) -> None:
        del closure


def make_models(attention: str, count: int = 2) -> list[FactorVAE]:
    """Make models of one structure whose rates and weights differ, with latents that carry something."""
    torch.manual_seed(0)
    made = []
    for index in range(count):
        model = FactorVAE(4, 10.0 * (index + 1), 1e-3 * (index + 1), attention=ATTENTIONS[attention](), seed=index)
        for parameter in model.encoder.parameters():
            parameter.data.mul_(2)
        made.append(model)
    return made


def of_one_run(ours: Callable, plain: Callable, kind: str) -> tuple[Callable, Callable]:
    """Make the stacked convolution and PyTorch's functions of signal, weight and bias, channels last."""
    name = f"{kind}.convolutions.1.weight"

    def theirs(signal: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        rows = zip(signal, weight, bias, strict=True)
        return torch.stack([plain(x.permute(0, 3, 1, 2), w, b, 2, 1).movedim(1, -1) for x, w, b in rows])

    return lambda signal, weight, bias: ours(signal, arrange(name, weight), bias), theirs


@pytest.mark.parametrize(
    ("ours", "plain", "kind", "channels"),
    [
        (convolution.convolve, F.conv2d, "encoder", (7, 5)),
        (convolution.transposed, F.conv_transpose2d, "decoder", (5, 7)),
        (lambda x, w, b: convolution.convolve_one_channel(x[..., 0], w, b), F.conv2d, "encoder", (7, 1)),
        (
            lambda x, w, b: convolution.transposed_to_one_channel(x, w, b)[..., None],
            F.conv_transpose2d,
            "decoder",
            (5, 1),
        ),
    ],
)
def test_stacked_convolutions(ours: Callable, plain: Callable, kind: str, channels: tuple[int, int]) -> None:
    """Values and all gradients are those of PyTorch's convolutions, each run's with its own weights."""
    weight = torch.randn(2, *channels, 4, 4, dtype=torch.float64, requires_grad=True)
    ours, theirs = of_one_run(ours, plain, kind)
    into, out = channels[::-1] if kind == "encoder" else channels
    signal = torch.randn(2, 3, 4, 6, into, dtype=torch.float64, requires_grad=into > 1)
    bias = torch.randn(2, out, dtype=torch.float64, requires_grad=True)
    made, expected = ours(signal, weight, bias), theirs(signal, weight, bias)
    torch.testing.assert_close(made, expected)
    upstream = torch.randn_like(expected)
    inputs = [value for value in (signal, weight, bias) if value.requires_grad]
    gradients = (torch.autograd.grad(value, inputs, upstream) for value in (made, expected))
    for mine, theirs_ in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs_)


def test_adjoints_of_convolutions() -> None:
    """Carried back, and averaged over the places, gradients are autograd's; so are those of the average."""
    weight = torch.randn(2, 7, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    signal = torch.randn(2, 3, 8, 12, 5, dtype=torch.float64, requires_grad=True)
    matrix = arrange("encoder.convolutions.1.weight", weight)
    upstream = torch.randn(2, 3, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    made = convolution.convolve(signal, matrix, weight.new_zeros(2, 7))
    (expected,) = torch.autograd.grad(made, signal, upstream, retain_graph=True)
    carried = convolution.adjoint(upstream, matrix)
    torch.testing.assert_close(carried, expected)
    mean = convolution.mean_adjoint(upstream, matrix)
    torch.testing.assert_close(mean, carried.mean((2, 3)))
    probe = torch.randn_like(mean)
    gradients = (
        torch.autograd.grad((value * probe).sum(), (upstream, weight), retain_graph=True)
        for value in (mean, carried.mean((2, 3)))
    )
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_layout_is_undone() -> None:
    for name, weight in FactorVAE().named_parameters():
        if not name.startswith("discriminator"):
            stacked = torch.stack([weight.detach(), 2 * weight.detach()])
            assert torch.equal(restore(name, arrange(name, stacked), weight.shape), stacked)


def test_bits_are_unpacked_as_numpy_does(bits: torch.Tensor) -> None:
    assert np.array_equal(unpack(bits).numpy().reshape(300, -1), np.unpackbits(bits.numpy(), axis=1))


def give_draws(monkeypatch: pytest.MonkeyPatch, draws: Draws, run: int, bits: torch.Tensor) -> torch.Tensor:
    """Have a Lightning module draw the random numbers of a run, and return the run's images."""
    monkeypatch.setattr(torch, "randn", lambda *_, **__: draws.noise[run])
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: draws.uniform[run].topk(2).indices)
    monkeypatch.setattr(models, "permute", lambda latents, _: latents.gather(0, draws.order[run]))
    return unpack(bits[draws.indices[run]])[:, None]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradients_are_those_of_the_lightning_modules(
    attention: str, bits: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all weights of both networks, for every run, with the same random numbers, to 1e-5."""
    made = make_models(attention)
    runs = StackedRuns(made, [0, 1], bits, batch_size=8, working=torch.float32)
    draw(runs.draws, runs.generators, len(bits))
    draws = Draws(*(values[0] for values in runs.draws))
    vae, discriminator = runs.gradients(draws)
    for run, model in enumerate(made):
        optimizers = [
            Still([*model.encoder.parameters(), *model.decoder.parameters()]),
            Still(model.discriminator.parameters()),
        ]
        images = give_draws(monkeypatch, draws, run, bits)
        logged = model.optimise(images, optimizers)
        assert logged.keys() == runs.terms.keys()
        if attention != "none":
            assert logged["attention"] > 0
        for name, value in logged.items():
            torch.testing.assert_close(runs.terms[name][run], value, rtol=1e-5, atol=1e-6)
        restored = {name: restore(name, value, runs.shapes[name]) for name, value in vae.items()}
        ours = {**restored, **{f"discriminator.{name}": value for name, value in discriminator.items()}}
        for name, parameter in model.named_parameters():
            departure = (ours[name][run] - parameter.grad).norm() / parameter.grad.norm()
            assert departure < 1e-5, name


def test_steps_are_those_of_the_lightning_modules(bits: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of both runs, whose learning rates differ, after three steps of every optimiser."""
    made, start = make_models("apart"), [model.state_dict() for model in make_models("apart")]
    optimizers = [model.configure_optimizers() for model in made]
    runs = StackedRuns(made, [0, 1], bits, batch_size=4, working=torch.float32)
    draw(runs.draws, runs.generators, len(bits))
    for step in range(3):
        draws = Draws(*(values[step] for values in runs.draws))
        runs.step(draws)
        for run, model in enumerate(made):
            with monkeypatch.context() as patched:
                model.optimise(give_draws(patched, draws, run, bits), optimizers[run])
    for run, model in enumerate(made):
        own = {f"discriminator.{name}": value[run] for name, value in runs.discriminator.items()}
        for name, value in {**runs.weights_of(run), **own}.items():
            # Adam divides by the size of the gradient, which for some weights is nothing but rounding.
            departure = (value - model.state_dict()[name]).norm() / (value - start[run][name]).norm()
            assert departure < 0.02, name


def test_a_run_is_the_same_alone_as_beside_others(bits: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights after some steps, but for rounding: a run draws for itself."""
    monkeypatch.setattr(stacked_runs, "STEPS", 3)
    others = [*make_models("none"), *make_models("apart")[:1]]
    beside = StackedRuns(
        [others[0], make_models("apart")[1], *others[1:]], [0, 1, 2, 3], bits, batch_size=4, working=torch.float32
    )
    alone = StackedRuns(make_models("apart")[1:], [1], bits, batch_size=4, working=torch.float32)
    for runs in (beside, alone):
        runs.advance()
    assert beside.terms["attention"].shape == (4,)
    for name, value in alone.weights_of(0).items():
        torch.testing.assert_close(value, beside.weights_of(1)[name], rtol=1e-3, atol=1e-4)
    assert beside.steps == 3


def test_stacked_beta_vae_learns(bits: torch.Tensor) -> None:
    runs = StackedRuns([BetaVAE(4, beta, 4e-3) for beta in (1.0, 4.0)], [0, 0], bits, batch_size=8)
    draw(runs.draws, runs.generators, 300)
    runs.gradients(Draws(*(values[0] for values in runs.draws)))
    before = runs.terms["reconstruction"]
    runs.advance()
    assert (runs.terms["reconstruction"] < 0.9 * before).all()


def test_models_that_cannot_be_stacked(bits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="2 models of the structures"):
        StackedRuns([FactorVAE(), BetaVAE()], [0, 0], bits)
    with pytest.raises(ValueError, match="2 models of the structures"):
        StackedRuns([*make_models("apart", 1), *make_models("printed", 1)], [0, 0], bits)
    with pytest.raises(ValueError, match="1 seeds"):
        StackedRuns([FactorVAE(), FactorVAE()], [0], bits)


def test_a_checkpoint_of_other_settings(bits: torch.Tensor) -> None:
    state = StackedRuns(make_models("apart"), [0, 1], bits, batch_size=4).state_dict()
    others = make_models("apart")
    others[1].gamma = 3.0
    with pytest.raises(ValueError, match=r"'gamma': 20\.0, .*, not .*'gamma': 3\.0, .*: name another output folder"):
        StackedRuns(others, [0, 1], bits, batch_size=4).load_state_dict(state)
    with pytest.raises(ValueError, match="runs with batches of 4, not batches of 8"):
        StackedRuns(make_models("apart"), [0, 1], bits, batch_size=8).load_state_dict(state)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["none", "apart", "printed"])
def test_gradients_on_a_gpu_are_those_of_the_processor(attention: str, bits: torch.Tensor) -> None:
    """In bf16 and TF32, with every term of the loss, but for rounding: a cosine above .999."""
    torch.set_float32_matmul_precision("high")
    found = []
    for device, working in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        runs = StackedRuns(make_models(attention), [0, 1], bits.to(device), batch_size=64, working=working)
        cpu = StackedRuns(make_models(attention), [0, 1], bits, batch_size=64)
        draw(cpu.draws, cpu.generators, 300)
        found.append(runs.gradients(Draws(*(values[0].to(device) for values in cpu.draws))))
    for ours, theirs in zip(*found, strict=True):
        for run in range(2):
            flat = [torch.cat([value[run].flatten().cpu() for value in part.values()]) for part in (ours, theirs)]
            assert F.cosine_similarity(*flat, dim=0) > 0.999


@pytest.mark.gpu
def test_graphs_do_what_single_steps_do_and_go_on_exactly(tmp_path: Path, bits: torch.Tensor) -> None:
    """Replayed steps end where eager ones do, and so does a run that was stopped."""
    torch.set_float32_matmul_precision("high")

    def make() -> StackedRuns:
        return StackedRuns(make_models("apart"), [0, 1], bits.cuda())

    whole, stopped, eager = make(), make(), make()
    for _ in range(4):
        whole.advance()
        eager._is_warm = False
        eager.advance()
    for _ in range(2):
        stopped.advance()
    torch.save(stopped.state_dict(), tmp_path / "state")
    resumed = make()
    resumed.load_state_dict(torch.load(tmp_path / "state", map_location="cuda", weights_only=True))
    for _ in range(2):
        resumed.advance()
    for name, value in whole.weights_of(0).items():
        torch.testing.assert_close(value, eager.weights_of(0)[name], rtol=0, atol=0)
        torch.testing.assert_close(value, resumed.weights_of(0)[name], rtol=0, atol=0)

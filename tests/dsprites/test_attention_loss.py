"""Eq. 5 in numbers, its maps against autograd, and which latents it compares."""

import pytest
import torch

from anomalib_vae_attention.attention import latent_attention
from anomalib_vae_attention.dsprites.attention_loss import AttentionDisentanglement, overlap
from anomalib_vae_attention.dsprites.networks import LAYERS, Encoded, Encoder


def encode(latent_dim: int = 4) -> tuple[Encoder, Encoded, torch.Tensor]:
    """Make an encoder in double precision, what it makes of three images, and noise."""
    encoder = Encoder(latent_dim).double()
    for parameter in encoder.parameters():
        # Larger weights than at the start, so that no map is 0 everywhere.
        parameter.data.mul_(2)
    encoded = encoder.encode(torch.rand(3, 1, 64, 64, dtype=torch.float64))
    return encoder, encoded, torch.randn(3, latent_dim, dtype=torch.float64)


def test_overlap_by_hand() -> None:
    first = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    second = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
    assert overlap(first, second) == pytest.approx(2 * (1 + 0 + 1 + 1) / 10)
    assert overlap(first, first) == pytest.approx(1)
    assert overlap(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]])) == 0


def test_maps_that_are_zero_have_no_overlap_and_no_gradient() -> None:
    first, second = (torch.zeros(2, 3, 3, requires_grad=True) for _ in range(2))
    value = overlap(first, second).sum()
    assert value == 0
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(value, (first, second)))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("score", ["sample", "mean"])
def test_maps_and_second_order_path_against_autograd(layer: str, score: str) -> None:
    """The maps of eq. 1 and 2, and the gradient of eq. 5 by all weights, are autograd's with ``create_graph``."""
    encoder, encoded, noise = encode()
    loss = AttentionDisentanglement(layer=layer, score=score)
    explained = encoded.mean
    if score == "sample":
        explained = explained + (0.5 * encoded.log_variance).exp() * noise
    activations = encoded.activations(layer)
    expected = []
    for latent in (1, 3):
        (gradient,) = torch.autograd.grad(explained[:, latent].sum(), activations, create_graph=True)
        expected.append((gradient.mean((2, 3), keepdim=True) * activations).sum(1).relu())
    maps = loss.maps(encoder, encoded, noise, [1, 3])
    torch.testing.assert_close(maps, torch.stack(expected, 1))
    assert maps.sum() > 0
    parameters = list(encoder.parameters())
    gradients = (
        torch.autograd.grad(overlap(one, two).mean(), parameters, retain_graph=True, materialize_grads=True)
        for one, two in (maps.unbind(1), expected)
    )
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_without_the_second_order_path_alpha_is_constant() -> None:
    encoder, encoded, noise = encode()
    (constant,) = torch.autograd.grad(
        AttentionDisentanglement(second_order=False).maps(encoder, encoded, noise, [0]).sum(),
        encoder.posterior.weight,
        allow_unused=True,
        retain_graph=True,
    )
    assert constant is None
    (full,) = torch.autograd.grad(
        AttentionDisentanglement().maps(encoder, encoded, noise, [0]).sum(), encoder.posterior.weight
    )
    assert full.abs().sum() > 0


def test_normalised_maps_reach_one_or_are_zero() -> None:
    encoder, encoded, noise = encode()
    greatest = AttentionDisentanglement(normalise=True).maps(encoder, encoded, noise, [0, 1, 2]).amax((-2, -1))
    assert ((greatest - 1).abs().lt(1e-9) | greatest.eq(0)).all()


def test_maps_of_both_signs_do_not_vanish() -> None:
    """Where every activation argues against a latent, eq. 2's map is empty; that of both signs is not."""
    encoder, encoded, noise = encode()
    activations = encoded.activations("conv4")
    gradients = -torch.ones(3, 1, *activations.shape[1:], dtype=torch.float64)
    assert not latent_attention(activations, gradients).any()
    torch.testing.assert_close(latent_attention(activations, gradients, both_signs=True)[:, 0], activations.sum(1))
    positive = AttentionDisentanglement().maps(encoder, encoded, noise, [0, 1])
    both = AttentionDisentanglement(both_signs=True).maps(encoder, encoded, noise, [0, 1])
    shown = positive > 0
    assert torch.equal(positive[shown], both[shown])
    assert (both[~shown] > 0).any()


def with_means(means: list[float]) -> Encoded:
    """Make posteriors of unit variance with given means."""
    mean = torch.tensor([means, means])
    return Encoded(mean, torch.zeros_like(mean), {})


def test_random_pairs_are_distinct_and_reproducible() -> None:
    encoded = with_means([0.0] * 3)
    generator = torch.Generator().manual_seed(0)
    pairs = [AttentionDisentanglement().choose(encoded, generator)[0] for _ in range(100)]
    assert {frozenset(pair) for pair in pairs} == {frozenset(pair) for pair in ((0, 1), (0, 2), (1, 2))}
    assert pairs[0] == AttentionDisentanglement().choose(encoded, torch.Generator().manual_seed(0))[0]


def test_pairs_by_divergence() -> None:
    """``top2`` takes the two of greatest divergence, ``all`` every pair of the active ones."""
    encoded = with_means([1.0, 0.0, 3.0, 0.1, 2.0])
    assert set(AttentionDisentanglement(pairs="top2").choose(encoded)[0]) == {2, 4}
    assert AttentionDisentanglement(pairs="all").choose(encoded) == [(0, 2), (0, 4), (2, 4)]


def test_no_pair_is_no_loss() -> None:
    encoded = with_means([1.0, 0.0, 0.0])
    assert AttentionDisentanglement(pairs="all")(Encoder(3), encoded, torch.zeros(2, 3)) == 0


def test_all_pairs_are_averaged() -> None:
    encoder, encoded, noise = encode(3)
    encoded = encoded._replace(mean=encoded.mean + 1)
    loss = AttentionDisentanglement(pairs="all")
    maps = loss.maps(encoder, encoded, noise, [0, 1, 2])
    expected = torch.stack([overlap(maps[:, one], maps[:, two]) for one, two in ((0, 1), (0, 2), (1, 2))]).mean()
    torch.testing.assert_close(loss(encoder, encoded, noise), expected)


def test_warm_up() -> None:
    loss = AttentionDisentanglement(weight=2.0, warmup_steps=4)
    assert [loss.weight_at(step) for step in (0, 1, 3, 10)] == [0.5, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "wrong", [{"weight": -1.0}, {"warmup_steps": -1}, {"pairs": "some"}, {"layer": "conv5"}, {"score": "z"}]
)
def test_arguments_out_of_range(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AttentionDisentanglement(**wrong)

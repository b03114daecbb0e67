"""The networks, their adjoint and the discriminator's two losses against plain PyTorch and autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.dsprites.discriminator import Discriminator, permute
from anomalib_vae_attention.dsprites.networks import LAYERS, Encoder
from anomalib_vae_attention.image_vae.conv import ConvDecoder


def test_encoder_and_decoder_are_kim_and_mnih_s() -> None:
    """The networks are what plain PyTorch layers with the same weights would be."""
    encoder = Encoder(10)
    decoder = ConvDecoder(encoder)
    first, second, third, fourth = encoder.convolutions
    plain = [first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), fourth, nn.ReLU(), nn.Flatten()]
    plain = nn.Sequential(*plain, encoder.hidden, nn.ReLU(), encoder.posterior)
    images = torch.rand(3, 1, 64, 64)
    encoded = encoder.encode(images)
    torch.testing.assert_close(torch.cat([encoded.mean, encoded.log_variance], 1), plain(images))
    assert [tuple(layer.shape[1:]) for layer in map(encoded.activations, LAYERS)] == [
        (32, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (64, 4, 4),
    ]
    layers: list[nn.Module] = [
        decoder.linears[0],
        nn.ReLU(),
        decoder.linears[1],
        nn.ReLU(),
        nn.Unflatten(1, (64, 4, 4)),
    ]
    for layer in decoder.convolutions:
        layers += [layer, nn.ReLU()]
    torch.testing.assert_close(decoder(encoded.mean), nn.Sequential(*layers[:-1])(encoded.mean))


@pytest.mark.parametrize("layer", LAYERS)
def test_adjoint_is_autograd_s_gradient(layer: str) -> None:
    """And so is the gradient of what is computed from it: the second-order path."""
    encoder = Encoder(4).double()
    encoded = encoder.encode(torch.rand(3, 1, 64, 64, dtype=torch.float64))
    upstream = torch.randn(3, 2, 8, dtype=torch.float64)
    activations = encoded.activations(layer)
    parameters = torch.cat([encoded.mean, encoded.log_variance], 1)
    expected = torch.stack(
        [torch.autograd.grad(parameters, activations, upstream[:, row], create_graph=True)[0] for row in range(2)], 1
    )
    ours = encoder.by_activations(upstream, encoded, layer)
    torch.testing.assert_close(ours, expected)
    weights = [parameter for name, parameter in encoder.named_parameters() if not name.endswith("bias")]
    probe = torch.randn_like(expected)
    gradients = (
        torch.autograd.grad((made * probe).sum(), weights, retain_graph=True, materialize_grads=True)
        for made in (ours, expected)
    )
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_both_losses_of_the_discriminator_from_one_pass() -> None:
    """Estimate, its gradient, loss and weight gradients are what autograd gives for each loss on its own."""
    discriminator = Discriminator(4).double()
    latents, permuted = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    ratio = discriminator.estimate(latents, permuted)
    ours = [parameter.grad.clone() for parameter in discriminator.parameters()]
    latents.requires_grad_()
    logits = discriminator(latents)
    total_correlation = (logits[:, 0] - logits[:, 1]).mean()
    torch.testing.assert_close(ratio.total_correlation, total_correlation.detach())
    torch.testing.assert_close(ratio.gradient, torch.autograd.grad(total_correlation, latents)[0])
    both = discriminator(torch.cat([latents.detach(), permuted]))
    loss = F.cross_entropy(both, torch.tensor([0] * 6 + [1] * 6))
    torch.testing.assert_close(ratio.loss, loss.detach())
    for mine, theirs in zip(ours, torch.autograd.grad(loss, discriminator.parameters()), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_discriminator_is_six_layers_of_a_thousand() -> None:
    widths = [tuple(layer.weight.shape) for layer in Discriminator(10).layers]
    assert widths == [(1000, 10), *[(1000, 1000)] * 5, (2, 1000)]


def test_permutation_is_of_each_latent_on_its_own() -> None:
    latents = torch.arange(40.0).view(10, 4)
    permuted = permute(latents, torch.Generator().manual_seed(1))
    assert torch.equal(permuted.sort(0).values, latents)
    assert (permuted[:, 0] - permuted[:, 1]).unique().numel() > 1
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        permute(latents[:1])

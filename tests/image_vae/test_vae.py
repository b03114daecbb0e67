"""The image VAEs: gradients back to every layer of every network against autograd, sizes, arguments, likelihoods."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from anomalib_vae_attention.image_vae.elbo import Bernoulli, Gaussian, kl_by_latent, kl_gradient
from anomalib_vae_attention.image_vae.network import INPUT, Network
from anomalib_vae_attention.image_vae.vae import ImageVAE, make_image_vae
from anomalib_vae_attention.image_vae.whitened_start import LOG_VARIANCE, start_from

VAES = {
    "resnet18": ("resnet18", 4, (32, 64), 3, "gaussian"),
    "conv": ("conv", 4, (28, 28), 1, "bernoulli"),
    "conv_odd": ("conv", 3, (25, 30), 3, "gaussian", (4, 6, 8), 16),
}


def make(name: str) -> tuple[ImageVAE, torch.Tensor]:
    """Make a VAE whose batch normalisation has seen images, and images for it."""
    arguments = VAES[name]
    vae = make_image_vae(*arguments).train()
    with torch.no_grad():
        for _ in range(2):
            vae.elbo_terms(torch.rand(4, arguments[3], *arguments[2]))
        for module in vae.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.1)
    return vae.eval(), torch.rand(2, arguments[3], *arguments[2])


def check_layers(network: Network, given: torch.Tensor, names: list[str]) -> None:
    """Demand autograd's gradients of two outputs by every layer's activations, to 1e-5 of their size."""
    trace = network.trace(given.requires_grad_())
    output = trace[network.steps[-1].name].flatten(1)
    chosen = [0, output.shape[1] - 1]
    seeds = torch.zeros(len(given), 2, output.shape[1])
    seeds[:, [0, 1], chosen] = 1
    seeds = seeds.unflatten(2, trace[network.steps[-1].name].shape[1:])
    theirs = [
        torch.autograd.grad(output[:, index].sum(), [trace[name] for name in names], retain_graph=True)
        for index in chosen
    ]
    for position, name in enumerate(names):
        expected = torch.stack([parts[position] for parts in theirs], 1)
        with torch.no_grad():
            # Only what is said to be needed is kept.
            kept = network.trace(given.detach(), network.from_layer(name))
            ours = network.adjoint(seeds, kept, [name])[name]
        assert expected.norm() > 0, name
        assert (ours - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize("name", VAES)
def test_gradients_by_every_layer_of_the_encoder(name: str) -> None:
    vae, image = make(name)
    check_layers(vae.encoder, image, [INPUT, *(step.name for step in vae.encoder.steps)])


@pytest.mark.parametrize("name", VAES)
def test_gradients_by_every_layer_of_the_decoder(name: str) -> None:
    vae, image = make(name)
    latent = vae.posterior(image).mean.detach()
    check_layers(vae.decoder, latent, [INPUT, *(step.name for step in vae.decoder.steps)])


def test_gradients_by_several_layers_at_once() -> None:
    """What goes past a layer, through a shortcut, reaches the one before it and is left out of its own."""
    vae, image = make("resnet18")
    names = ["layer2.1.conv1", "layer1.0.relu2", "layer3.0.downsample.0"]
    seeds = torch.randn(2, 3, 8)
    with torch.no_grad():
        trace = vae.encoder.trace(image)
        together = vae.encoder.adjoint(seeds, trace, names)
        for name in names:
            torch.testing.assert_close(together[name], vae.encoder.adjoint(seeds, trace, [name])[name])


@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(8, 21), st.integers(8, 21)), depth=st.integers(1, 3), channels=st.sampled_from([1, 3])
)
def test_any_size_of_the_convolutional_network(size: tuple[int, int], depth: int, channels: int) -> None:
    # Wide enough that hardly a draw of weights has no active unit, whose gradients would be 0.
    vae = make_image_vae("conv", 2, size, channels, "bernoulli", (8, 12, 16)[:depth], 64).eval()
    image = torch.rand(2, channels, *size)
    with torch.no_grad():
        assert vae.decode(vae.posterior(image).mean).shape == image.shape
    check_layers(vae.encoder, image, [INPUT, "conv1"])


@pytest.mark.parametrize("name", VAES)
def test_elbo_gradient(name: str) -> None:
    """The gradient of the ELBO by the image is autograd's, and so is what of it goes through the network alone."""
    vae, image = make(name)
    vae, image = vae.double(), image.double()
    with torch.no_grad():
        ours = vae.elbo_gradient(image)
        direct = vae.likelihood.gradient(vae.decoder(vae.posterior(image).mean), image)[0]
    terms = vae.elbo_terms(image.requires_grad_())
    (expected,) = torch.autograd.grad((terms["reconstruction"] + terms["kl"]).sum(), image)
    assert (expected - direct).norm() > 0
    assert (ours - expected).norm() <= 1e-5 * (expected - direct).norm()


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian().eval()])
def test_likelihoods(likelihood: Bernoulli | Gaussian) -> None:
    """Negative log-likelihoods are those of torch.distributions, and their gradients autograd's."""
    if isinstance(likelihood, Gaussian):
        likelihood.variance.fill_(0.3)
    logits, image = torch.randn(2, 3, 4, 5).requires_grad_(), torch.rand(2, 3, 4, 5).round().requires_grad_()
    loss = likelihood(logits, image)
    if isinstance(likelihood, Gaussian):
        known = torch.distributions.Normal(logits.sigmoid(), 0.3**0.5).log_prob(image)
    else:
        known = torch.distributions.Bernoulli(logits=logits).log_prob(image)
    torch.testing.assert_close(loss, -known.sum((1, 2, 3)))
    expected = torch.autograd.grad(loss.sum(), [image, logits])
    with torch.no_grad():
        ours = likelihood.gradient(logits, image)
    torch.testing.assert_close(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1])


def test_kl_divergence() -> None:
    mean, log_variance = torch.randn(2, 3, 4).unbind()
    mean, log_variance = mean.requires_grad_(), log_variance.requires_grad_()
    ours = kl_by_latent(mean, log_variance)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(posterior, prior))
    expected = torch.autograd.grad(ours.sum(), [mean, log_variance])
    torch.testing.assert_close(kl_gradient(mean, log_variance).detach(), torch.cat(expected, 1))


def test_noise_variance_is_that_of_the_residuals() -> None:
    """In training the variance is the batch's, in evaluation its running mean, which starts with the first batch."""
    likelihood, logits = Gaussian().train(), torch.zeros(2, 1, 4, 4)
    first, second = torch.rand(2, 2, 1, 4, 4).unbind()
    likelihood(logits, first)
    residual = (first - 0.5).square().mean()
    torch.testing.assert_close(likelihood.variance, residual)
    likelihood(logits, second)
    torch.testing.assert_close(likelihood.variance, residual.lerp((second - 0.5).square().mean(), 0.05))
    before = likelihood.variance.clone()
    likelihood.eval()(logits, first)
    assert torch.equal(likelihood.variance, before)


def test_the_encoder_is_torchvisions() -> None:
    """ResNet-18 computes what torchvision's does on the same weights."""
    from torchvision.models import resnet18

    vae, image = make("resnet18")
    theirs = resnet18(weights=None, num_classes=8)
    theirs.load_state_dict(vae.encoder.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(vae.encoder(image), theirs.eval()(image))


def test_a_copy_has_its_own_weights() -> None:
    vae, image = make("conv")
    other = copy.deepcopy(vae)
    torch.nn.init.zeros_(other.encoder.posterior.weight)
    with torch.no_grad():
        assert not torch.equal(vae.posterior(image).mean, other.posterior(image).mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet18", 4, (100, 100), 3, "gaussian"), "input_size: vae='resnet18' takes multiples of 32"),
        (("conv", 4, (28, 3), 1, "gaussian"), "input_size: vae='conv' with 2 widths takes 4x4 pixels or more"),
        (("conv", 4, (28,), 1, "gaussian"), "input_size must be 2 whole numbers"),
        (("conv", 0, (28, 28), 1, "gaussian"), "latent_dim must be at least 1"),
        (("conv", 4, (28, 28), 2, "gaussian"), "channels must be one of"),
        (("conv", 4, (28, 28), 1, "poisson"), "likelihood must be one of"),
        (("conv", 4, (28, 28), 1, "gaussian", ()), "widths must be one or more whole numbers"),
    ],
)
def test_arguments_out_of_range(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_image_vae(*arguments)


def test_a_layer_is_found_by_the_module_it_ends() -> None:
    encoder = make_image_vae(*VAES["resnet18"]).encoder
    assert encoder.find("layer2") == "layer2.1.relu2"
    assert encoder.find("layer2.0") == "layer2.0.relu2"
    assert encoder.find("layer2.1.conv1") == "layer2.1.conv1"
    with pytest.raises(ValueError, match=r"'layer5' is no layer of the encoder, which has \['conv1', 'bn1'"):
        encoder.find("layer5")
    with pytest.raises(ValueError, match="'fc' is no layer"):
        encoder.find("fc")


@pytest.mark.parametrize("count", [9, 3])
def test_a_residual_vae_starts_at_principal_components(count: int) -> None:
    """Means over the images start uncorrelated, with the prior's variance, in scikit-learn's order; others at zero."""
    vae = make_image_vae(*VAES["resnet18"]).train()
    images = torch.rand(count, 3, 32, 64)
    start_from(vae, lambda: images.split(4))
    vae.eval()
    with torch.no_grad():
        mean, log_variance = vae.posterior(images)
        decoded = vae.decode(mean)
        features = vae.encoder.trace(images, kept=["flatten"])["flatten"]
    assert (log_variance == LOG_VARIANCE).all()
    used = min(4, count - 1)
    expected = PCA(used, whiten=True).fit_transform(features.double()) * (count / (count - 1)) ** 0.5
    torch.testing.assert_close(mean[:, :used].abs(), torch.tensor(expected).abs().float(), rtol=1e-2, atol=1e-2)
    assert (mean[:, used:] == 0).all()
    torch.testing.assert_close(decoded, images.mean(0).expand_as(decoded), rtol=1e-4, atol=1e-4)
    norms = [module for module in vae.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {torch.nn.BatchNorm2d(1).momentum}


def test_a_single_image_of_one_cell_cannot_be_learnt_from() -> None:
    """Batch normalisation has no variance of it, which is said; it can be scored."""
    vae = make_image_vae(*VAES["resnet18"]).train()
    with pytest.raises(ValueError, match="choose a train_batch_size"):
        vae.posterior(torch.rand(1, 3, 32, 32))
    assert vae.posterior(torch.rand(2, 3, 32, 32)).mean.shape == (2, 4)
    assert vae.eval().posterior(torch.rand(1, 3, 32, 32)).mean.shape == (1, 4)


def test_what_cannot_start() -> None:
    """No image is refused; the convolutional VAE starts as it is."""
    with pytest.raises(ValueError, match="no training image"):
        start_from(make_image_vae(*VAES["resnet18"]), list)
    vae = make_image_vae(*VAES["conv"])
    before = copy.deepcopy(vae.state_dict())
    start_from(vae, lambda: [torch.rand(4, 1, 28, 28)])
    torch.testing.assert_close(vae.state_dict(), before, rtol=0, atol=0)

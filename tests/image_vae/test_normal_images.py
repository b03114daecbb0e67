"""What the image VAEs learn of normal images: posteriors, departures and scales, and that it is kept."""

import pytest
import torch
from image_vaes import SMALL, make

from anomalib_vae_attention.image_vae import residual_variance
from anomalib_vae_attention.image_vae.model import ImageVaeModel


@pytest.mark.parametrize("name", SMALL)
def test_normal_departures_are_those_of_all_images(name: str) -> None:
    """Mean squares over all normal images, however they were batched, and a share of the channel's mean."""
    model = ImageVaeModel(**SMALL[name]).eval()
    normal = torch.rand(7, model.channels, *model.input_size)
    model.collect(normal.split(3))
    (layer,) = model.attention_layers
    with torch.no_grad():
        reconstruction = model.vae.decode(model.vae.posterior(normal).mean)
        trace, seen = (model.vae.encoder.trace(image)[layer] for image in (normal, reconstruction))
    square = (trace - seen).square().mean(0)
    expected = (square + 0.05 * square.mean((1, 2), keepdim=True)).clamp_min(1e-12)
    torch.testing.assert_close(model.departures.of(layer), expected, rtol=1e-4, atol=1e-12)
    energies = model.explain(normal, "activation_energy")[0]
    assert 0.5 < energies.mean() <= 1


def test_departures_of_a_layer_that_was_not_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's other layers are left out, what it does not have is asked for, with one clear error."""
    model, image = make("conv", attention_layers=["conv1"])
    other = ImageVaeModel(**SMALL["conv"], attention_layers=["conv1", "conv2"]).eval()
    other.load_state_dict(model.state_dict())
    known = model.explain(image, "activation_energy", ["conv1"])
    assert torch.equal(other.explain(image, "activation_energy", ["conv1"])[0], known[0])
    with pytest.raises(ValueError, match="has learnt nothing of 'relu2'"):
        other.explain(image, "activation_energy", ["relu2"])
    fewer = ImageVaeModel(**SMALL["conv"], attention_layers=["conv1"]).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("departures.")}
    fewer.load_state_dict(state)
    with pytest.raises(ValueError, match="has learnt nothing of 'conv1'"):
        fewer.explain(image, "activation_energy")
    # A CUDA graph that is being made cannot wait for a value.
    monkeypatch.setattr(residual_variance, "may_look", lambda _: False)
    assert not fewer.departures.of("conv1").any()
    with pytest.raises(ValueError, match="the training set is empty"):
        model.collect([], ["conv1"])


def test_normal_posteriors_are_those_of_all_images() -> None:
    """The normal distribution has the moments of the mixture of the images' posteriors."""
    model = ImageVaeModel(**SMALL["conv"]).eval()
    normal = torch.rand(7, 1, 20, 22)
    model.collect(normal.split(3))
    with torch.no_grad():
        posterior = model.vae.posterior(normal)
    torch.testing.assert_close(model.normal_mean, posterior.mean.mean(0))
    drawn = posterior.mean + (0.5 * posterior.log_variance).exp() * torch.randn(4000, 7, 4)
    torch.testing.assert_close(model.normal_variance, drawn.flatten(0, 1).var(0), rtol=0.05, atol=0)


def test_latents_that_hardly_vary_leave_maps_their_scale() -> None:
    """A VAE that uses a thousandth of its latents' range has energies a millionth as large, and so is their scale."""
    model, normal = make("conv")
    means = slice(model.latent_dim)
    *_, last = (module for module in model.vae.encoder.modules() if isinstance(module, torch.nn.Linear))
    scales = []
    for factor in (1, 1e-3):
        with torch.no_grad():
            last.weight[means].mul_(factor)
            last.bias[means].mul_(factor)
        model.collect(normal.split(1))
        scales.append(float(model.scales.of("energy").map_mean))
    assert scales[1] == pytest.approx(1e-6 * scales[0], rel=1e-2)


@pytest.mark.parametrize("reference", ["exemplars", "gaussian"])
def test_state_is_restored(reference: str) -> None:
    """A fresh model with the state of another gives the very same maps."""
    model, image = make("conv", reference=reference)
    other = ImageVaeModel(**SMALL["conv"], reference=reference).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        ours, theirs = other(image), model(image)
    assert torch.equal(ours.anomaly_map, theirs.anomaly_map)
    assert torch.equal(ours.pred_score, theirs.pred_score)

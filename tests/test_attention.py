"""Attention in closed form against autograd, and its completeness."""

import pytest
import torch
from support import Fitted

from anomalib_vae_attention.attention import energy_attention
from anomalib_vae_attention.torch_model import VaeAttentionModel


def make_model(reference: str = "exemplars", images: int = 4, size: tuple[int, int] = (88, 60)) -> VaeAttentionModel:
    """Make a model with random weights, statistics, VAE and normal images."""
    model = VaeAttentionModel(pre_trained=False, latent_dim=16, reference=reference).eval()
    with torch.no_grad():
        layers = model.layers(torch.randn(images, 3, *size))
        raw = model.grid.stack(layers)
        model.grid.mean.copy_(raw.mean((0, 2, 3)) + 0.1 * torch.randn(raw.shape[1]))
        model.grid.std.copy_(raw.std((0, 2, 3)) * (0.5 + torch.rand(raw.shape[1])))
        # The VAE of other features, of full rank: what is closed is the residual's projection, for any of these.
        other = (
            torch.randn(2 * raw.shape[1], raw.shape[1], dtype=torch.float64)
            @ torch.randn(raw.shape[1], raw.shape[1]).double()
        )
        model.vae.initialise(other.T @ other / len(other))
        model.reference.start()
        model.reference.update(model.posterior(model.grid(layers))[0])
        model.calibrate(model.reference.finish())
    return model


def check_gradients(model: VaeAttentionModel, image: torch.Tensor) -> None:
    """Compare explain()'s maps and the gradients of the whole chain with autograd's, to 1e-5 of their size."""
    with torch.no_grad():
        explanation = model.explain(image)
        gradients = model.grid.adjoint(model._judge(model.grid(explanation.activations))[2])
    layers = [layer.clone().requires_grad_() for layer in explanation.activations]
    with torch.enable_grad():
        energy = model._judge(model.grid(layers))[1]
        expected = torch.autograd.grad(0.5 * energy.sum(), layers)
    torch.testing.assert_close(energy.detach(), explanation.energy)
    maps = [
        (gradient * (layer - normal)).sum(1)
        for gradient, layer, normal in zip(expected, explanation.activations, explanation.counterfactual, strict=True)
    ]
    assert len(expected) == len(gradients) == len(explanation.attention) == 3
    for ours, theirs in zip([*gradients, *explanation.attention], [*expected, *maps], strict=True):
        assert theirs.norm() > 0
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("reference", ["exemplars", "gaussian"])
def test_gradients_of_a_random_model(reference: str) -> None:
    """From the energy back to the layers, the closed form is autograd's gradient, for any weights."""
    check_gradients(make_model(reference), torch.randn(2, 3, 88, 60))


def test_gradients_of_a_fitted_model(fitted: Fitted, test_images: dict[str, torch.Tensor]) -> None:
    """From the energy back to the layers, the closed form is autograd's gradient, after a fit."""
    good, bad = (int((test_images["label"] == label).nonzero()[0]) for label in (False, True))
    check_gradients(fitted.model.model, test_images["image"][[good, bad]])


def test_no_autograd_at_inference(fitted: Fitted, test_images: dict[str, torch.Tensor]) -> None:
    """Attention is the same where autograd is off altogether."""
    image = test_images["image"][:1]
    with torch.inference_mode():
        maps = fitted.model.model(image).anomaly_map
    torch.testing.assert_close(maps, fitted.model.model(image).anomaly_map.detach())


@pytest.mark.parametrize("size", [(64, 64), (88, 60)])
def test_completeness(size: tuple[int, int]) -> None:
    """Against activations that encode to the matched latents, the maps of all layers add up to the energy."""
    image, normal = torch.randn(2, 1, 3, *size).unbind()
    model = make_model("gaussian", size=size)
    with torch.no_grad():
        layers, normal_layers = model.layers(image), model.layers(normal)
        # The Gaussian of one image: every cell is compared with that image's own latent.
        model.reference.start()
        model.reference.update(model.posterior(model.grid(normal_layers))[0])
        model.reference.finish()
        match, _, _ = model._judge(model.grid(layers))
        gradients = model.grid.adjoint(model.vae.adjoint(match.gradient))
        maps = energy_attention(layers, normal_layers, gradients)
    torch.testing.assert_close(match.latent, model.vae.posterior(model.grid(normal_layers)).mean)
    assert match.energy.sum() > 1
    assert float(sum(part.sum() for part in maps)) == pytest.approx(float(match.energy.sum()), rel=1e-5)


def test_maps_are_gradient_times_departure() -> None:
    """A map is the sum over channels of gradient times departure, layer by layer; no departure, no attention."""
    sizes = [(2, 3, 4, 5), (2, 2, 3, 3)]
    activations, normal, gradients = ([torch.randn(size) for size in sizes] for _ in range(3))
    maps = energy_attention(activations, normal, gradients)
    for index, size in enumerate(sizes):
        expected = torch.zeros(size[0], *size[2:])
        for channel in range(size[1]):
            departure = activations[index][:, channel] - normal[index][:, channel]
            expected += gradients[index][:, channel] * departure
        torch.testing.assert_close(maps[index], expected)
    assert all(part.eq(0).all() for part in energy_attention(activations, activations, gradients))
    with pytest.raises(ValueError, match="zip"):
        energy_attention(activations, normal[:1], gradients)

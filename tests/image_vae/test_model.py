"""The image VAEs' maps and scores: their definitions against autograd and captum, and what they must not depend on."""

from collections.abc import Sequence

import pytest
import torch
from captum.attr import LayerGradCam
from image_vaes import LAYERS, SMALL, make
from sklearn.metrics import roc_auc_score

from anomalib_vae_attention.image_vae.attention_maps import ATTENTIONS, latent_maps
from anomalib_vae_attention.image_vae.encoder_gradients import EncoderGradients
from anomalib_vae_attention.image_vae.model import ImageVaeModel
from anomalib_vae_attention.image_vae.vae import ImageVAE


def autograd_gradients(
    model: ImageVaeModel, image: torch.Tensor, layer: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a layer's activations and autograd's gradients of means and log variances by it, ``(B, d, C, h, w)``."""
    encoder = model.vae.encoder
    trace = encoder.trace(image.clone().requires_grad_())
    output, activations = trace[encoder.steps[-1].name], trace[encoder.find(layer)]
    parts = [torch.autograd.grad(part.sum(), activations, retain_graph=True)[0] for part in output.unbind(1)]
    by_mean, by_log_variance = torch.stack(parts, 1).chunk(2, 1)
    return activations.detach(), by_mean, by_log_variance


def resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize maps ``(B, h, w)`` as torchvision would."""
    return torch.nn.functional.interpolate(maps[:, None], size=tuple(size), mode="bilinear", antialias=True)[:, 0]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Say whether two tensors agree to 1e-5 of their size; a map of zeros would say nothing."""
    assert ours.shape == theirs.shape
    assert theirs.norm() > 0
    return bool((ours - theirs).norm() <= 1e-5 * theirs.norm())


class Latents(torch.nn.Module):
    """The posterior means as a plain module on torchvision's or PyTorch's own layers, for captum's hooks."""

    def __init__(self, vae: ImageVAE) -> None:
        super().__init__()
        self.encoder = vae.encoder

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the means ``(B, d)``."""
        return self.encoder(image).chunk(2, 1)[0]


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name in SMALL for layer in LAYERS[name]])
def test_latent_attention_is_captums_grad_cam(name: str, layer: str) -> None:
    """Before any resizing, ``M^i`` of eq. 1-2 is LayerGradCam's, to 1e-5, for every latent."""
    model, image = make(name)
    step = next(step for step in model.vae.encoder.steps if step.name == model.vae.encoder.find(layer))
    cam = LayerGradCam(Latents(model.vae), step.layer)
    (ours,) = latent_maps(EncoderGradients(model.vae, image, [step.name]))
    for latent in range(4):
        theirs = cam.attribute(image, target=latent, relu_attributions=True)[:, 0].detach()
        if theirs.norm() == 0:
            assert ours[:, latent].norm() == 0
        else:
            assert close(ours[:, latent].detach(), theirs)
    assert ours.norm() > 0


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name in SMALL for layer in LAYERS[name]])
def test_maps_by_their_formulas(name: str, layer: str) -> None:
    """Eq. 1-3, the released recipe, eq. 4 and the energy's attention, each written anew on autograd's gradients."""
    model, image = make(name)
    activations, by_mean, by_log_variance = autograd_gradients(model, image, layer)
    posterior = model.vae.posterior(image)

    def cam(gradient: torch.Tensor) -> torch.Tensor:
        return (gradient.mean((-2, -1), keepdim=True) * activations).sum(1)

    expected = {"latent": sum(cam(by_mean[:, latent]).relu() for latent in range(4)) / 4}
    expected["mean"] = cam(by_mean.sum(1)).abs()
    samples = []
    for noise in model.noise:
        for latent in range(4):
            variance = posterior.log_variance[:, latent].detach().requires_grad_()
            spread = (model.normal_variance[latent] + variance.exp()).sqrt() * noise[latent]
            (slope,) = torch.autograd.grad(spread.sum(), variance)
            gradient = -by_mean[:, latent] + slope[:, None, None, None] * by_log_variance[:, latent]
            samples.append(cam(gradient).relu())
    expected["normal_difference"] = torch.stack(samples).mean(0)
    match = model.normal.match(posterior)
    normal = model.vae.encoder.trace(model.vae.decode(match.latent[:, :, 0, 0]))[model.vae.encoder.find(layer)]
    by_energy = torch.einsum("bd,bdchw->bchw", match.gradient[:, :, 0, 0], by_mean)
    expected["energy"] = (by_energy * (activations - normal)).sum(1)
    seen = model.vae.encoder.trace(model.vae.decode(posterior.mean))[model.vae.encoder.find(layer)]
    variance = model.departures.of(model.vae.encoder.find(layer))
    departure = (activations - seen).detach().requires_grad_()
    energy = (departure.square() / variance).sum() / (2 * departure.shape[1])
    (by_departure,) = torch.autograd.grad(energy, departure)
    expected["activation_energy"] = (by_departure * departure).sum(1)
    for attention, theirs in expected.items():
        assert close(model.explain(image, attention, [layer])[0], resize(theirs.detach(), model.input_size)), attention


@pytest.mark.parametrize("name", SMALL)
def test_scores_and_baselines_by_their_definitions(name: str) -> None:
    model, image = make(name)
    with torch.no_grad():
        posterior = model.vae.posterior(image)
        variance = model.normal_variance + posterior.log_variance.exp()
        deviation = (posterior.mean - model.normal_mean).square() / variance
        residual = (image - model.vae.decode(posterior.mean)).square()
        terms = model.vae.elbo_terms(image)
        scores = {
            "normal_difference": deviation.sum(1),
            "reconstruction": residual.mean((1, 2, 3)),
            "elbo_gradient": terms["reconstruction"] + terms["kl"],
            "energy": model.normal.match(posterior).nearest[:, 0, 0],
            "latent": model.explain(image, "latent")[0].amax((1, 2)),
            "mean": model.explain(image, "mean")[0].amax((1, 2)),
            "activation_energy": model.explain(image, "activation_energy")[0].amax((1, 2)),
        }
        assert set(scores) == set(ATTENTIONS)
        for attention, expected in scores.items():
            torch.testing.assert_close(model.explain(image, attention)[1], expected)
        torch.testing.assert_close(model.explain(image, "reconstruction")[0], residual.mean(1))
        gradient = model.vae.elbo_gradient(image).abs().sum(1)
        torch.testing.assert_close(model.explain(image, "elbo_gradient")[0], gradient)


def test_layers_are_averaged_after_resizing() -> None:
    model, image = make("resnet18")
    both = model.explain(image, "latent", ["layer1", "layer3"])[0]
    each = [model.explain(image, "latent", [layer])[0] for layer in ("layer1", "layer3")]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_image_does_not_depend_on_its_neighbours(name: str, attention: str) -> None:
    """Scores and maps of a batch are those of each image alone: the released code's are not."""
    model, image = make(name, attention=attention)
    with torch.inference_mode():
        together = model(image)
        alone = [model(one[None]) for one in image]
    assert together.anomaly_map.shape == (3, 1, *model.input_size)
    assert together.pred_score.shape == (3,)
    for result in (together.anomaly_map, together.pred_score):
        assert result.min() > 0
        assert result.max() < 1
    torch.testing.assert_close(
        together.anomaly_map, torch.cat([one.anomaly_map for one in alone]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(together.pred_score, torch.cat([one.pred_score for one in alone]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_what_comes_out_ranks_as_what_is_explained(attention: str) -> None:
    """The map into (0, 1) is monotonic and does not saturate: areas under ROC curves stay the same."""
    model, image = make("conv", attention=attention)
    maps, scores = model.explain(image)
    out = model(image)
    truth = torch.rand(maps.shape) < 0.3
    expected = roc_auc_score(truth.flatten(), maps.flatten())
    assert roc_auc_score(truth.flatten(), out.anomaly_map.detach().flatten()) == pytest.approx(expected, abs=1e-3)
    assert torch.equal(out.pred_score.argsort(), scores.argsort())


def test_normal_mean_drops_out_of_the_printed_equation() -> None:
    """Eq. 4's map is the same whatever the normal mean; its score and the energy's map are not."""
    model, image = make("conv")
    before = model.explain(image, "normal_difference")
    model.normal_mean.add_(1)
    after = model.explain(image, "normal_difference")
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_samples_are_seeded() -> None:
    assert torch.equal(ImageVaeModel(**SMALL["conv"]).noise, ImageVaeModel(**SMALL["conv"]).noise)
    assert not torch.equal(ImageVaeModel(**SMALL["conv"], seed=1).noise, ImageVaeModel(**SMALL["conv"]).noise)
    assert ImageVaeModel(**SMALL["conv"], samples=3).noise.shape == (3, 4)


@pytest.mark.parametrize(("channels", "given"), [(1, 3), (3, 1)])
def test_colours_and_greys(channels: int, given: int) -> None:
    """A grey network takes the mean of the colours; a colour network takes a grey three times."""
    model, _ = make("conv", channels=channels)
    image = torch.rand(2, given, 20, 22)
    grey = image.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    with torch.no_grad():
        assert torch.equal(model(image).anomaly_map, model(grey).anomaly_map)


def test_latents_one_by_one() -> None:
    model, image = make("conv")
    maps = model.latent_maps(image)
    assert maps.shape == (3, 4, 20, 22)
    torch.testing.assert_close(maps.mean(1), model.explain(image, "latent")[0])


def test_what_cannot_be_used() -> None:
    model = ImageVaeModel(**SMALL["conv"]).eval()
    with pytest.raises(RuntimeError, match="has not been fitted"):
        model(torch.rand(1, 1, 20, 22))
    with pytest.raises(ValueError, match="the training set is empty"):
        model.collect([])
    model, image = make("conv")
    with pytest.raises(ValueError, match=r"size \(10, 10\), but the network takes \(20, 22\)"):
        model(torch.rand(1, 1, 10, 10))
    image[1, 0, 0, 0] = float("nan")
    assert (model(image).pred_score == 1).tolist() == [index == 1 for index in range(len(image))]
    with pytest.raises(ValueError, match="attention must be one of"):
        model.explain(image, "grad")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"max_exemplars": 0}, "max_exemplars must be at least 1"),
        ({"attention_layers": ["conv9"]}, r"'conv9' is no layer of the encoder, which has \['conv1', 'relu1'"),
        ({"attention": "grad"}, "attention must be one of"),
        ({"vae": "vgg"}, "vae must be one of"),
        ({"reference": "mean"}, "reference must be one of"),
        ({"input_size": (3, 3)}, "input_size"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageVaeModel(**{**SMALL["conv"], **arguments})

"""The attention maps and image scores of image VAEs, in their own units, without autograd."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.attention import (
    activation_energy_attention,
    energy_attention,
    latent_attention,
    mean_attention,
    normal_difference_attention,
)
from anomalib_vae_attention.reference import Match, NormalReference
from anomalib_vae_attention.vae import Posterior

from .encoder_gradients import EncoderGradients
from .residual_variance import ResidualVariance
from .vae import LatentPosterior

LayerMaps = tuple[Sequence[torch.Tensor], torch.Tensor | None]
"""A map of each layer, of shape ``(B, h, w)``, and image scores of shape ``(B,)``; none takes the map's maximum."""

Explained = tuple[torch.Tensor, torch.Tensor]
"""Maps of shape ``(B, H, W)`` and image scores of shape ``(B,)``, each greater where more anomalous."""


class NormalStatistics(NamedTuple):
    """What a model knows of normal images.

    Attributes:
        reference: Their posteriors.
        mean: Mean of their latents, of shape ``(d,)``.
        variance: Variance of their latents, of shape ``(d,)``: that of the posterior means plus ``average_variance``.
        average_variance: Mean of their posterior variances, of shape ``(d,)``.
        residual_variance: How far their activations are from those of their reconstructions.
        noise: Samples of standard normal noise for ``normal_difference``, of shape ``(S, d)``.
    """

    reference: NormalReference
    mean: torch.Tensor
    variance: torch.Tensor
    average_variance: torch.Tensor
    residual_variance: ResidualVariance
    noise: torch.Tensor

    def match(self, posterior: LatentPosterior) -> Match:
        """Match posteriors with the reference: a grid of one cell, with the variances of an average image."""
        return self.reference.match(Posterior(posterior.mean[:, :, None, None], self.average_variance))

    def deviations(self, posterior: LatentPosterior) -> torch.Tensor:
        """Return how far each latent is from normal: the mean of u (eq. 4) over its standard deviation, ``(B, d)``."""
        return (posterior.mean - self.mean) * (self.variance + posterior.log_variance.exp()).rsqrt()


class Attention(NamedTuple):
    """A way to make anomaly maps and image scores.

    Attributes:
        explain: Gives the maps of the layers and the image scores, each greater where more anomalous.
        uses_layers: Whether it looks at layers of the encoder.
        gradients_per_latent: Number of gradients that it takes per latent; 0 where one in all will do.
        uses_residuals: Whether it must have learnt the :class:`ResidualVariance` of its layers.
        uses_matches: Whether it matches images with the reference. Normal images would match themselves, so that its
            scales come from the energies of those left out.
    """

    explain: Callable[[EncoderGradients, NormalStatistics], LayerMaps]
    uses_layers: bool = True
    gradients_per_latent: int = 0
    uses_residuals: bool = False
    uses_matches: bool = False


def average_maps(maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
    """Average maps of several layers, resized to the images.

    Args:
        maps: Those of each layer, of shape ``(B, P, h, w)``, no larger than the images: none has to be smoothed first.
        size: Height and width ``(H, W)`` of the images in pixels.

    Returns:
        Maps of shape ``(B, P, H, W)``.
    """
    return torch.stack([F.interpolate(layer_map, tuple(size), mode="bilinear") for layer_map in maps]).mean(0)


def _energy(seen: EncoderGradients, normal: NormalStatistics) -> LayerMaps:
    """Gradient of the latent energy times departure from the counterfactual; the energy to the nearest posterior."""
    match = normal.match(seen.posterior)
    counterfactual = seen.of_decoded(match.latent[:, :, 0, 0])
    gradients = seen.by_mean(match.gradient[:, :, 0, 0])
    maps = energy_attention(seen.activations, counterfactual.activations, gradients)
    return maps, match.nearest[:, 0, 0]


def _activation_energy(seen: EncoderGradients, normal: NormalStatistics) -> LayerMaps:
    """Energy of the layer's activations against those of the reconstruction; the map's maximum."""
    reconstruction = seen.of_decoded(seen.posterior.mean)
    variances = map(normal.residual_variance.of, seen.layers)
    return list(map(activation_energy_attention, seen.activations, reconstruction.activations, variances)), None


def latent_maps(seen: EncoderGradients) -> list[torch.Tensor]:
    """Return ``M^i`` of eq. 1-2 for each layer, of shape ``(B, d, h, w)``."""
    return list(map(latent_attention, seen.activations, seen.by_parameters(range(seen.latent_dim))))


def _latent(seen: EncoderGradients, _normal: NormalStatistics) -> LayerMaps:
    """Mean over latents of eq. 1-2, which is eq. 3; the map's maximum."""
    return [maps.mean(1) for maps in latent_maps(seen)], None


def _mean(seen: EncoderGradients, _normal: NormalStatistics) -> LayerMaps:
    """The authors' released recipe; the map's maximum."""
    gradients = seen.by_mean(torch.ones_like(seen.posterior.mean))
    return list(map(mean_attention, seen.activations, gradients)), None


def _normal_difference(seen: EncoderGradients, normal: NormalStatistics) -> LayerMaps:
    """Eq. 4 in place of z, mean over latents; squared mean of u over its variance, summed over latents."""
    own = seen.posterior.log_variance.exp()
    slope = 0.5 * normal.noise * (own * (normal.variance + own).rsqrt())[:, None]
    maps = []
    for activations, gradients in zip(seen.activations, seen.by_parameters(range(2 * seen.latent_dim)), strict=True):
        by_mean, by_log_variance = gradients.chunk(2, dim=1)
        maps.append(normal_difference_attention(activations, by_mean, by_log_variance, slope).mean(1))
    return maps, normal.deviations(seen.posterior).square().sum(1)


def _reconstruction(seen: EncoderGradients, _normal: NormalStatistics) -> LayerMaps:
    """Squared residual, mean over colours; its mean over pixels."""
    residual = (seen.image - seen.vae.decode(seen.posterior.mean)).square().mean(1)
    return [residual], residual.mean((-2, -1))


def _elbo_gradient(seen: EncoderGradients, _normal: NormalStatistics) -> LayerMaps:
    """Absolute gradient of the ELBO, summed over colours; the negative ELBO."""
    terms = seen.vae.terms(seen.image, seen.posterior, seen.posterior.mean)
    return [seen.vae.elbo_gradient(seen.image).abs().sum(1)], terms["reconstruction"] + terms["kl"]


ATTENTIONS = {
    "energy": Attention(_energy, uses_matches=True),
    "activation_energy": Attention(_activation_energy, uses_residuals=True),
    "latent": Attention(_latent, gradients_per_latent=1),
    "mean": Attention(_mean),
    "normal_difference": Attention(_normal_difference, gradients_per_latent=2),
    "reconstruction": Attention(_reconstruction, uses_layers=False),
    "elbo_gradient": Attention(_elbo_gradient, uses_layers=False),
}
"""The attentions of image VAEs by name; the docstring of each function says what its map and its score are.

The last two are what attention is to be compared with. To add one, write its formula in ``attention.py``, a function
here that calls it, and a row.
"""


def explain(seen: EncoderGradients, normal: NormalStatistics, attention: str) -> Explained:
    """Make an attention's maps, averaged over layers, and image scores."""
    maps, scores = ATTENTIONS[attention].explain(seen, normal)
    mean = average_maps([layer_map[:, None] for layer_map in maps], seen.image.shape[-2:])[:, 0]
    return mean, mean.amax((-2, -1)) if scores is None else scores


def join(parts: Iterable[Explained]) -> Explained:
    """Join what was made of parts of a batch."""
    maps, scores = zip(*parts, strict=True)
    return torch.cat(maps), torch.cat(scores)

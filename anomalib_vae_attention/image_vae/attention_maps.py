"""The attention maps and image scores of image VAEs, in their own units, without autograd."""

from collections.abc import Iterable, Sequence

import torch

from anomalib_vae_attention.attention import (
    activation_energy_attention,
    energy_attention,
    latent_attention,
    mean_attention,
    normal_difference_attention,
)
from anomalib_vae_attention.common.argument_checks import require_choice
from anomalib_vae_attention.reference import Match, NormalReference
from anomalib_vae_attention.vae import Posterior

from .encoder_gradients import Encoded, LatentMaps
from .residual_variance import Departures
from .vae import ImageVAE, LatentPosterior

ATTENTIONS = ("energy", "activation_energy", "latent", "mean", "normal_difference", "reconstruction", "elbo_gradient")
"""How maps are made of an image VAE; the last two, without a layer, are what attention is to be compared with."""
WITHOUT_LAYERS = ("reconstruction", "elbo_gradient")
"""Those of them that look at no layer."""

BY_LATENT = ("latent", "normal_difference")
"""Those that take gradients of every latent, which is most of the work."""

Explained = tuple[torch.Tensor, torch.Tensor]
"""Maps of shape ``(B, H, W)`` and image scores of shape ``(B,)``, each greater where more anomalous."""


class ImageMaps(LatentMaps):
    """The map generators, for an image VAE that knows what is normal; :class:`ImageVaeModel` tables what each does.

    Args:
        vae: The VAE.
        reference: What ``energy`` takes for normal.
        input_size: Height and width of images in pixels.
        channels: Channels of the images that the VAE takes.
        latent_dim: Number of latents ``d``.
        attention: One of :data:`ATTENTIONS`.
        attention_layers: Layers of the encoder that attention looks at.
        samples: Number of samples of ``u`` in ``normal_difference``.
        seed: Seed of these samples.

    Raises:
        ValueError: If there is no such attention or layer.
    """

    normal_mean: torch.Tensor
    normal_variance: torch.Tensor
    average_variance: torch.Tensor
    noise: torch.Tensor

    def __init__(
        self,
        vae: ImageVAE,
        reference: NormalReference,
        input_size: tuple[int, ...],
        channels: int,
        latent_dim: int,
        attention: str,
        attention_layers: Sequence[str] | str,
        samples: int,
        seed: int,
    ) -> None:
        super().__init__(vae, input_size, channels, latent_dim, attention_layers)
        require_choice("attention", attention, ATTENTIONS)
        self.reference, self.attention = reference, attention
        self.departures = Departures(self.map_shapes(self.attention_layers))
        self.register_buffer("normal_mean", torch.zeros(latent_dim))
        self.register_buffer("normal_variance", torch.ones(latent_dim))
        self.register_buffer("average_variance", torch.ones(latent_dim))
        noise = torch.randn(samples, latent_dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("noise", noise, persistent=False)

    @torch.no_grad()
    def explain(
        self,
        image: torch.Tensor,
        attention: str | None = None,
        layers: Sequence[str] | None = None,
    ) -> Explained:
        """Compute anomaly maps and image scores in their own units.

        Args:
            image: Images of shape ``(B, C, H, W)`` with the network's channels, pixels from 0 to 1.
            attention: One of :data:`ATTENTIONS`; the model's own by default.
            layers: Names of the encoder's layers; the model's own by default.

        Returns:
            Maps of shape ``(B, H, W)`` and scores of shape ``(B,)``, each greater where more anomalous.

        Raises:
            ValueError: If there is no such attention or layer.
        """
        attention = attention or self.attention
        require_choice("attention", attention, ATTENTIONS)
        layers = self.find_layers(layers) if layers else self.attention_layers
        explain = getattr(self, f"_{attention}")
        scores_of_latents = {"latent": self.latent_dim, "normal_difference": 2 * self.latent_dim}.get(attention, 1)
        parts = [explain(part, layers) for part in self._split(image, scores_of_latents)]
        maps, scores = zip(*parts, strict=True)
        return torch.cat(maps), torch.cat(scores)

    @torch.no_grad()
    def explain_all(
        self,
        image: torch.Tensor,
        layers: Sequence[str],
        attentions: Sequence[str] = ATTENTIONS,
    ) -> dict[tuple[str, str], Explained]:
        """Do :meth:`explain` for each attention and layer, the gradients shared by all.

        Args:
            image: Images of shape ``(B, C, H, W)`` with the network's channels, pixels from 0 to 1.
            layers: Names of the encoder's layers.
            attentions: Some of :data:`ATTENTIONS`.

        Returns:
            Maps ``(B, H, W)`` and scores ``(B,)`` by attention and layer; of what looks at no layer, by attention and
            an empty name.

        Raises:
            ValueError: If there is no such attention or layer.
        """
        names = dict(zip(layers, self.find_layers(layers), strict=True))
        for attention in attentions:
            require_choice("attention", attention, ATTENTIONS)
        found: dict[tuple[str, str], list[Explained]] = {}
        for part in self._split(image, 2 * self.latent_dim):
            encoded = self._encode(part, list(names.values()))
            if set(attentions) & set(BY_LATENT):
                jacobian = self._by_latents(encoded, list(names.values()), range(2 * self.latent_dim))
                encoded = encoded._replace(jacobian=jacobian)
            for attention in attentions:
                explain = getattr(self, f"_{attention}")
                for layer in [""] if attention in WITHOUT_LAYERS else layers:
                    chosen = [names[layer]] if layer else []
                    found.setdefault((attention, layer), []).append(explain(part, chosen, encoded))
        return {
            key: (torch.cat([maps for maps, _ in parts]), torch.cat([scores for _, scores in parts]))
            for key, parts in found.items()
        }

    def deviations(self, posterior: LatentPosterior) -> torch.Tensor:
        """Return how far each latent is from normal: the mean of u (eq. 4) over its standard deviation, ``(B, d)``."""
        variance = self.normal_variance + posterior.log_variance.exp()
        return (posterior.mean - self.normal_mean) * variance.rsqrt()

    def _latent(self, image: torch.Tensor, layers: Sequence[str], encoded: Encoded | None = None) -> Explained:
        encoded = encoded or self._encode(image, layers)
        gradients = self._by_latents(encoded, layers, range(self.latent_dim))
        maps = self._average(latent_attention(encoded.trace[name], gradients[name]).mean(1) for name in layers)
        return maps, maps.amax((-2, -1))

    def _mean(self, image: torch.Tensor, layers: Sequence[str], encoded: Encoded | None = None) -> Explained:
        encoded = encoded or self._encode(image, layers)
        mean = torch.ones_like(encoded.posterior.mean)
        seed = torch.cat([mean, torch.zeros_like(mean)], dim=1)[:, None]
        gradients = self._adjoint(seed, encoded, layers)
        maps = self._average(mean_attention(encoded.trace[name], gradients[name][:, 0]) for name in layers)
        return maps, maps.amax((-2, -1))

    def _normal_difference(
        self, image: torch.Tensor, layers: Sequence[str], encoded: Encoded | None = None
    ) -> Explained:
        encoded = encoded or self._encode(image, layers)
        gradients = self._by_latents(encoded, layers, range(2 * self.latent_dim))
        own = encoded.posterior.log_variance.exp()
        slope = 0.5 * self.noise * (own * (self.normal_variance + own).rsqrt())[:, None]
        count = self.latent_dim
        maps = self._average(
            normal_difference_attention(
                encoded.trace[name], gradients[name][:, :count], gradients[name][:, count:], slope
            ).mean(1)
            for name in layers
        )
        return maps, self.deviations(encoded.posterior).square().sum(1)

    def match(self, posterior: LatentPosterior) -> Match:
        """Match posteriors with the normal reference: a grid of one cell, variances those of an average image."""
        return self.reference.match(Posterior(posterior.mean[:, :, None, None], self.average_variance))

    def _energy(self, image: torch.Tensor, layers: Sequence[str], encoded: Encoded | None = None) -> Explained:
        encoded = encoded or self._encode(image, layers)
        match = self.match(encoded.posterior)
        normal = self._encode(self.vae.decode(match.latent[:, :, 0, 0]), layers)
        gradient = match.gradient[:, :, 0, 0]
        seed = torch.cat([gradient, torch.zeros_like(gradient)], dim=1)[:, None]
        gradients = self._adjoint(seed, encoded, layers)
        maps = energy_attention(
            [encoded.trace[name] for name in layers],
            [normal.trace[name] for name in layers],
            [gradients[name][:, 0] for name in layers],
        )
        return self._average(maps), match.nearest[:, 0, 0]

    def _activation_energy(
        self, image: torch.Tensor, layers: Sequence[str], encoded: Encoded | None = None
    ) -> Explained:
        encoded = encoded or self._encode(image, layers)
        normal = self._encode(self.vae.decode(encoded.posterior.mean), layers)
        maps = self._average(
            activation_energy_attention(encoded.trace[name], normal.trace[name], self.departures.variance(name))
            for name in layers
        )
        return maps, maps.amax((-2, -1))

    def observe(self, batches: Iterable[torch.Tensor], layers: Sequence[str]) -> None:
        """Learn how far activations of normal images are from those of their reconstructions.

        Args:
            batches: Normal images, in batches of shape ``(B, C, H, W)`` with the network's channels.
            layers: Names of the encoder's layers, beside the model's own.

        Raises:
            ValueError: If there is no such layer, or no image.
        """
        layers = list(dict.fromkeys([*self.attention_layers, *self.find_layers(layers)]))
        self.departures.start(self.map_shapes(layers))
        for image in batches:
            self._observe(image)
        self.departures.finish()

    @torch.no_grad()
    def _observe(self, image: torch.Tensor) -> LatentPosterior:
        """Add a batch of normal images to the departures, and return its posteriors."""
        layers = self.departures.layers
        encoded = self._encode(image, layers)
        normal = self._encode(self.vae.decode(encoded.posterior.mean), layers)
        self.departures.update({name: encoded.trace[name] - normal.trace[name] for name in layers})
        return encoded.posterior

    def _reconstruction(self, image: torch.Tensor, *_context: object) -> Explained:
        residual = (image - self.vae.decode(self.vae.posterior(image).mean)).square().mean(1)
        return residual, residual.mean((-2, -1))

    def _elbo_gradient(self, image: torch.Tensor, *_context: object) -> Explained:
        terms = self.vae.elbo_terms(image)
        return self.vae.elbo_gradient(image).abs().sum(1), terms["reconstruction"] + terms["kl"]

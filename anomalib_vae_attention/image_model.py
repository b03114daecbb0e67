"""The image VAEs as a torch module: image in, ``InferenceBatch`` out, no autograd at inference."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from anomalib.data import InferenceBatch
from torch import nn

from .attention import energy_attention, latent_attention, mean_attention, normal_difference_attention
from .reference import Exemplars, Gaussian, Match, NormalReference
from .resampling import apply_separable, resize_matrix
from .torch_model import to_unit_interval
from .vae import Posterior
from .vae.image import IMAGE_VAES, ImageVAE, LatentPosterior, make_image_vae
from .vae.network import Trace

ATTENTIONS = ("energy", "latent", "mean", "normal_difference", "reconstruction", "elbo_gradient")
"""How maps are made of an image VAE; the last two, without attention, are what it is to be compared with."""
WITHOUT_LAYERS = ("reconstruction", "elbo_gradient")
"""Those of them that look at no layer."""
LEAST_ENERGY = 1.0
"""Least energy of normal images: that of latents one standard deviation apart."""
CALIBRATION_IMAGES = 16
"""Normal images from which the scales of maps and scores are estimated."""
PARALLEL_PIXELS = 2**20
"""Pixels, images times scores, whose gradients are carried back at a time: more take memory, and longer."""


Explained = tuple[torch.Tensor, torch.Tensor]
"""Maps of shape ``(B, H, W)`` and image scores of shape ``(B,)``, each greater where more anomalous."""


class Encoded(NamedTuple):
    """What the encoder makes of images.

    Attributes:
        posterior: The posterior.
        trace: Activations by name, from the first attention layer on.
        jacobian: Gradients of all means and log variances by the layers, ``(B, 2 d, C, h, w)`` each, where several
            attentions share them.
    """

    posterior: LatentPosterior
    trace: Trace
    jacobian: Trace | None = None


class ImageVaeModel(nn.Module):
    """An image VAE, an attention and the normal posteriors, put together.

    ================== ============================================ ===============================================
    attention          anomaly map                                  image score
    ================== ============================================ ===============================================
    energy             gradient of the latent energy times the      the latent energy to the nearest normal
                       departure from the counterfactual            posterior
    latent             mean over latents of eq. 1-2 (eq. 3)         the map's maximum
    mean               the released recipe                          the map's maximum
    normal_difference  eq. 4 in place of z, mean over latents       squared mean of u over its variance, added up
                                                                    over latents
    reconstruction     squared residual, mean over colours          its mean over pixels
    elbo_gradient      absolute gradient of the ELBO, added up      the negative ELBO
                       over colours
    ================== ============================================ ===============================================

    Args:
        vae: ``"resnet18"`` or ``"conv"``.
        attention: One of :data:`ATTENTIONS`; it can be changed after training.
        attention_layers: Layers of the encoder that attention looks at; maps of several are resized and averaged.
            Without effect on ``reconstruction`` and ``elbo_gradient``.
        latent_dim: Number of latents ``d``.
        input_size: Height and width of images in pixels.
        channels: 1 makes images grey, 3 takes their colours.
        likelihood: ``"bernoulli"`` or ``"gaussian"``.
        widths: Channels of each convolution of ``conv``.
        hidden_dim: Width of the hidden layer of ``conv``.
        reference: What ``energy`` takes for normal: ``"exemplars"`` or ``"gaussian"``.
        max_exemplars: Most normal images that the exemplars keep.
        samples: Number of samples of ``u`` in ``normal_difference``.
        seed: Seed of these samples.

    Raises:
        ValueError: If an argument is out of range; the message says which and what there is.
    """

    normal_mean: torch.Tensor
    normal_variance: torch.Tensor
    average_variance: torch.Tensor
    noise: torch.Tensor
    map_scale: torch.Tensor
    score_mean: torch.Tensor
    score_std: torch.Tensor
    is_fitted: torch.Tensor

    def __init__(
        self,
        vae: str = "resnet18",
        attention: str = "energy",
        attention_layers: Sequence[str] | str | None = None,
        latent_dim: int = 32,
        input_size: Sequence[int] | None = None,
        channels: int | None = None,
        likelihood: str | None = None,
        widths: Sequence[int] = (64, 128),
        hidden_dim: int = 1024,
        reference: str = "exemplars",
        max_exemplars: int = 2000,
        samples: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        references: dict[str, Callable[[], NormalReference]] = {
            "exemplars": lambda: Exemplars(max_exemplars, radius=0),
            "gaussian": Gaussian,
        }
        for name, value, choices in (("vae", vae, list(IMAGE_VAES)), ("reference", reference, list(references))):
            if value not in choices:
                msg = f"{name} must be one of {choices}, but is {value!r}."
                raise ValueError(msg)
        for name, count in (("samples", samples), ("max_exemplars", max_exemplars)):
            if count < 1:
                msg = f"{name} must be at least 1, but is {count}."
                raise ValueError(msg)
        defaults = IMAGE_VAES[vae]
        self.input_size = tuple(input_size or defaults.input_size)
        self.channels = channels or defaults.channels
        likelihood = likelihood or defaults.likelihood
        self.vae: ImageVAE = make_image_vae(
            vae, latent_dim, self.input_size, self.channels, likelihood, widths, hidden_dim
        )
        self.reference = references[reference]()
        self.attention = self._known(attention)
        self.attention_layers = self.find_layers(attention_layers or defaults.attention_layers)
        self.register_buffer("normal_mean", torch.zeros(latent_dim))
        self.register_buffer("normal_variance", torch.ones(latent_dim))
        self.register_buffer("average_variance", torch.ones(latent_dim))
        noise = torch.randn(samples, latent_dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("noise", noise, persistent=False)
        self.register_buffer("map_scale", torch.ones(len(ATTENTIONS)))
        self.register_buffer("score_mean", torch.zeros(len(ATTENTIONS)))
        self.register_buffer("score_std", torch.ones(len(ATTENTIONS)))
        self.register_buffer("is_fitted", torch.tensor(data=False))
        self._build_matrices()

    @torch.no_grad()
    def _build_matrices(self) -> None:
        """Build the matrices that resize maps of the attention layers; an export takes them for constants."""
        encoder = self.vae.encoder.eval()
        trace = encoder.trace(torch.zeros(1, self.channels, *self.input_size), self.attention_layers)
        encoder.train()
        for name in self.attention_layers:
            for axis, side, pixels in zip("hw", trace[name].shape[-2:], self.input_size, strict=True):
                self.register_buffer(f"resize_{axis}_{side}", resize_matrix(side, pixels), persistent=False)

    @staticmethod
    def _known(attention: str) -> str:
        if attention not in ATTENTIONS:
            msg = f"attention must be one of {list(ATTENTIONS)}, but is {attention!r}."
            raise ValueError(msg)
        return attention

    def find_layers(self, names: Sequence[str] | str) -> list[str]:
        """Return the encoder's own names of layers; see :meth:`Network.find`."""
        names = [names] if isinstance(names, str) else list(names)
        return [self.vae.encoder.find(name) for name in names]

    @property
    def latent_dim(self) -> int:
        """Number of latents."""
        return len(self.normal_mean)

    def prepare_image(self, image: torch.Tensor) -> torch.Tensor:
        """Give images ``(B, 3 or 1, H, W)`` the network's channels: the mean of colours, or a grey three times.

        Raises:
            ValueError: If the images are of another size than the network's.
        """
        if not torch.compiler.is_compiling() and tuple(image.shape[-2:]) != self.input_size:
            msg = (
                f"Images are of size {tuple(image.shape[-2:])}, but the network takes {self.input_size}: use the "
                "default pre-processor, which resizes to it."
            )
            raise ValueError(msg)
        if image.shape[1] != self.channels:
            image = image.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        return image

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor] | InferenceBatch:
        """Compute the ELBO's terms in training mode, and scores and anomaly maps in evaluation mode.

        Args:
            image: Images of shape ``(B, 3 or 1, H, W)``, pixels from 0 to 1, finite.

        Returns:
            In training mode the terms of each image (see :meth:`ImageVAE.elbo_terms`), latents sampled; else
            ``pred_score`` of shape ``(B,)`` and ``anomaly_map`` of shape ``(B, 1, H, W)``, strictly between 0 and 1.

        Raises:
            RuntimeError: If the model has not been fitted.
            ValueError: If the images are not finite, or not of the network's size.
        """
        image = self.prepare_image(image)
        if self.training:
            noise = torch.randn(len(image), self.latent_dim, device=image.device)
            return self.vae.elbo_terms(image.contiguous(memory_format=torch.channels_last), noise)
        self._check(image)
        maps, scores = self.explain(image)
        index = ATTENTIONS.index(self.attention)
        return InferenceBatch(
            pred_score=to_unit_interval((scores - self.score_mean[index]) / self.score_std[index]),
            anomaly_map=to_unit_interval(maps / self.map_scale[index])[:, None],
        )

    def _check(self, image: torch.Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        if not self.is_fitted:
            msg = "The model has not been fitted: run fit or train first, or load a checkpoint (ckpt_path)."
            raise RuntimeError(msg)
        bad = (~image.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            msg = f"The images at {bad} of the batch have pixels that are not a number or infinite."
            raise ValueError(msg)

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
        attention = self._known(attention or self.attention)
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
        found: dict[tuple[str, str], list[Explained]] = {}
        for part in self._split(image, 2 * self.latent_dim):
            encoded = self._encode(part, list(names.values()))
            jacobian = self._by_latents(encoded, list(names.values()), range(2 * self.latent_dim))
            encoded = encoded._replace(jacobian=jacobian)
            for attention in attentions:
                explain = getattr(self, f"_{self._known(attention)}")
                for layer in [""] if attention in WITHOUT_LAYERS else layers:
                    chosen = [names[layer]] if layer else []
                    found.setdefault((attention, layer), []).append(explain(part, chosen, encoded))
        return {
            key: (torch.cat([maps for maps, _ in parts]), torch.cat([scores for _, scores in parts]))
            for key, parts in found.items()
        }

    def _split(self, image: torch.Tensor, scores: int) -> Sequence[torch.Tensor]:
        """Split images into parts whose gradients fit in memory; an export takes all at once."""
        if torch.compiler.is_compiling():
            return [image]
        return image.split(max(1, PARALLEL_PIXELS // (scores * self.input_size[0] * self.input_size[1])))

    def _encode(self, image: torch.Tensor, layers: Sequence[str]) -> Encoded:
        encoder = self.vae.encoder
        kept = encoder.from_layer(min(layers, key=encoder.map_layers.index))
        trace = encoder.trace(image, kept)
        return Encoded(self.vae.split(trace[encoder.steps[-1].name]), trace)

    def _resize(self, maps: torch.Tensor) -> torch.Tensor:
        """Resize maps ``(..., h, w)`` to the images' size."""
        sides = zip("hw", maps.shape[-2:], self.input_size, strict=True)
        built = dict(self.named_buffers(recurse=False))
        rows, columns = (
            built[f"resize_{axis}_{side}"] if f"resize_{axis}_{side}" in built else resize_matrix(side, pixels).to(maps)
            for axis, side, pixels in sides
        )
        return apply_separable(rows, maps, columns)

    def _average(self, maps: Iterable[torch.Tensor]) -> torch.Tensor:
        """Average maps of several layers, each resized to the images' size."""
        resized = [self._resize(layer) for layer in maps]
        return torch.stack(resized).mean(0)

    def _by_latents(self, encoded: Encoded, layers: Sequence[str], latents: Sequence[int]) -> Trace:
        """Return the gradients of parameters of the posterior, means first, by layers, ``(B, P, C, h, w)`` each."""
        parameters = torch.eye(2 * self.latent_dim, device=encoded.posterior.mean.device)[list(latents)]
        # The length of a tensor would fix the number of images in an export; its shape does not.
        seeds = parameters.expand(encoded.posterior.mean.shape[0], -1, -1)
        return self._adjoint(seeds, encoded, layers)

    def _adjoint(self, seeds: torch.Tensor, encoded: Encoded, layers: Sequence[str]) -> Trace:
        """Carry gradients by the posterior's parameters back to layers."""
        if encoded.jacobian is None:
            return self.vae.adjoint(seeds, encoded.trace, layers)
        return {name: torch.einsum("bpk,bk...->bp...", seeds, encoded.jacobian[name]) for name in layers}

    @torch.no_grad()
    def latent_maps(
        self,
        image: torch.Tensor,
        latents: Sequence[int] | None = None,
        layers: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """Say what latents look at: ``M^i`` of eq. 1-2, averaged over layers after resizing.

        Args:
            image: Images of shape ``(B, C, H, W)`` with the network's channels, pixels from 0 to 1.
            latents: Which latents; all by default.
            layers: Names of the encoder's layers; the model's own by default.

        Returns:
            A map a latent, of shape ``(B, P, H, W)``, not negative.

        Raises:
            ValueError: If there is no such latent or layer.
        """
        latents = range(self.latent_dim) if latents is None else self.find_latents(latents)
        layers = self.find_layers(layers) if layers else self.attention_layers
        maps = []
        for part in self._split(image, len(latents)):
            encoded = self._encode(part, layers)
            gradients = self._by_latents(encoded, layers, latents)
            maps.append(self._average(latent_attention(encoded.trace[name], gradients[name]) for name in layers))
        return torch.cat(maps)

    def find_latents(self, latents: Sequence[int]) -> list[int]:
        """Check numbers of latents.

        Raises:
            ValueError: If one is out of range.
        """
        wrong = [latent for latent in latents if not 0 <= latent < self.latent_dim]
        if wrong:
            msg = f"latents: there is no {wrong}; the model's latents are 0 to {self.latent_dim - 1}."
            raise ValueError(msg)
        return list(latents)

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

    def _reconstruction(self, image: torch.Tensor, *_context: object) -> Explained:
        residual = (image - self.vae.decode(self.vae.posterior(image).mean)).square().mean(1)
        return residual, residual.mean((-2, -1))

    def _elbo_gradient(self, image: torch.Tensor, *_context: object) -> Explained:
        terms = self.vae.elbo_terms(image)
        return self.vae.elbo_gradient(image).abs().sum(1), terms["reconstruction"] + terms["kl"]

    @torch.no_grad()
    def collect(self, batches: Iterable[torch.Tensor]) -> int:
        """Learn what is normal: posteriors of normal images, and the scales of maps and scores.

        Args:
            batches: All normal images, in batches of shape ``(B, 3 or 1, H, W)``; the model is in evaluation mode.

        Returns:
            Number of images.

        Raises:
            ValueError: If there is no image.
        """
        parameters, some = [], []
        for batch in batches:
            image = self.prepare_image(batch)
            parameters.append(self.vae.encoder(image))
            some.append(image[:1])
        if not parameters:
            msg = "There is no normal image to learn from: the training set is empty."
            raise ValueError(msg)
        mean, log_variance = self.vae.split(torch.cat(parameters))
        self.average_variance.copy_(log_variance.exp().mean(0))
        self.normal_mean.copy_(mean.mean(0))
        self.normal_variance.copy_(mean.var(0, correction=0) + self.average_variance)
        self.reference.start()
        self.reference.update(Posterior(mean[:, :, None, None], self.average_variance.clone()))
        left_out = self.reference.finish()
        self._calibrate(torch.cat(some[:CALIBRATION_IMAGES]), left_out.energy, left_out.nearest)
        self.is_fitted.fill_(value=True)
        return len(mean)

    def _calibrate(self, image: torch.Tensor, energy: torch.Tensor, nearest: torch.Tensor) -> None:
        """Set the scales, whatever the attention: that of a trained model can be changed."""
        for index, attention in enumerate(ATTENTIONS):
            if attention == "energy":
                # The images would match themselves. A linear encoder's maps add up to the energy.
                trace = self._encode(image[:1], self.attention_layers).trace
                cells = [trace[name].shape[-2] * trace[name].shape[-1] for name in self.attention_layers]
                scale = energy.mean().clamp_min(LEAST_ENERGY) * sum(1 / count for count in cells) / len(cells)
                scores = nearest.flatten()
            else:
                maps, scores = self.explain(image, attention)
                scale = maps.mean()
            self.map_scale[index] = scale.clamp_min(torch.finfo(scale.dtype).tiny)
            self.score_mean[index] = scores.mean()
            deviation = scores.std() if len(scores) > 1 else scores.abs().mean()
            self.score_std[index] = deviation.clamp_min(1e-6 * scores.abs().mean()).clamp_min(1e-12)

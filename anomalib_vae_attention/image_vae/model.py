"""The image VAEs as a torch module: image in, ``InferenceBatch`` out, no autograd at inference."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_vae_attention.common.argument_checks import require_choice, require_whole
from anomalib_vae_attention.reference import MAX_EXEMPLARS, LeftOut, make_reference
from anomalib_vae_attention.scoring import as_floats, fail_safe, only_scorable, require_scorable, to_unit_interval
from anomalib_vae_attention.vae import Posterior

from .attention_maps import ATTENTIONS, Explained, NormalStatistics, average_maps, explain, join, latent_maps
from .encoder_gradients import EncoderGradients, encode_in_parts
from .residual_variance import ResidualVariance
from .scales import Scales
from .vae import IMAGE_VAES, make_image_vae

CALIBRATION_IMAGES = 16
"""Normal images from which the scales of maps and scores are estimated."""

LEAST_ENERGY = 1e-12
"""Least energy of normal images: that of latents a millionth of a standard deviation apart, about the resolution of
single precision. A VAE may well use a small part of its prior's range; copies of one image have no energy."""


class ImageVaeModel(nn.Module):
    """An image VAE, what it has learnt of normal images, and one of the :data:`ATTENTIONS`.

    The arguments are those of :class:`.VaeAttention` of the same names. The attention can be changed after training.
    Its layers have no effect on ``reconstruction`` and ``elbo_gradient``, and the reference none but on ``energy``.

    Raises:
        ValueError: If an argument is out of range; the message says which and what there is.
    """

    normal_mean: torch.Tensor
    normal_variance: torch.Tensor
    average_variance: torch.Tensor
    noise: torch.Tensor
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
        max_exemplars: int = MAX_EXEMPLARS,
        samples: int = 8,
        seed: int = 0,
    ) -> None:
        require_choice("vae", vae, list(IMAGE_VAES))
        require_whole("samples", samples, least=1)
        require_choice("attention", attention, list(ATTENTIONS))
        super().__init__()
        defaults = IMAGE_VAES[vae]
        size, channels = tuple(input_size or defaults.input_size), channels or defaults.channels
        likelihood = likelihood or defaults.likelihood
        self.vae = make_image_vae(vae, latent_dim, size, channels, likelihood, widths, hidden_dim)
        self.reference = make_reference(reference, max_exemplars)
        self.input_size, self.channels, self.latent_dim, self.attention = size, channels, latent_dim, attention
        self.attention_layers = self.find_layers(attention_layers or defaults.attention_layers)
        # The attribute is called what checkpoints call it.
        self.departures = ResidualVariance(self._map_shapes(self.attention_layers))
        self.scales = Scales()
        self.register_buffer("normal_mean", torch.zeros(latent_dim))
        self.register_buffer("normal_variance", torch.ones(latent_dim))
        self.register_buffer("average_variance", torch.ones(latent_dim))
        noise = torch.randn(samples, latent_dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("noise", noise, persistent=False)
        self.register_buffer("is_fitted", torch.tensor(data=False))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        self.scales.take(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def normal(self) -> NormalStatistics:
        """What the model knows of normal images."""
        moments = self.normal_mean, self.normal_variance, self.average_variance
        return NormalStatistics(self.reference, *moments, self.departures, self.noise)

    def find_layers(self, names: Sequence[str] | str) -> list[str]:
        """Return the encoder's own names of layers; see :meth:`Network.find`."""
        return [self.vae.encoder.find(name) for name in ([names] if isinstance(names, str) else names)]

    def _map_shapes(self, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
        return self.vae.encoder.map_shapes((self.channels, *self.input_size), layers)

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
            image: Images of shape ``(B, 3 or 1, H, W)``, pixels from 0 to 1.

        Returns:
            In training mode the terms of each image (see :meth:`ImageVAE.elbo_terms`), latents sampled; else
            ``pred_score`` of shape ``(B,)`` and ``anomaly_map`` of shape ``(B, 1, H, W)``, strictly between 0 and 1,
            and 1 for images that cannot be judged (see :func:`.fail_safe`).

        Raises:
            RuntimeError: If the model has not been fitted, or its checkpoint does not know the attention.
            ValueError: If the images are not of the network's size, or are none.
        """
        image = self.prepare_image(as_floats(image, self))
        if self.training:
            noise = torch.randn(len(image), self.latent_dim, device=image.device)
            return self.vae.elbo_terms(image.contiguous(memory_format=torch.channels_last), noise)
        image, whole = only_scorable(image)
        require_scorable(image, self.is_fitted)
        scale = self.scales.of(self.attention)
        maps, scores = self.explain(image)
        score = to_unit_interval((scores - scale.score_mean) / scale.score_std)
        return fail_safe(whole, score, to_unit_interval(maps / scale.map_mean)[:, None])

    @torch.no_grad()
    def explain(
        self, image: torch.Tensor, attention: str | None = None, layers: Sequence[str] | None = None
    ) -> Explained:
        """Compute anomaly maps and image scores in their own units.

        Args:
            image: Images of shape ``(B, C, H, W)`` with the network's channels, pixels from 0 to 1.
            attention: One of :data:`ATTENTIONS`; the model's own by default.
            layers: Names of the encoder's layers; the model's own by default.

        Raises:
            ValueError: If there is no such attention or layer.
        """
        name = attention or self.attention
        require_choice("attention", name, list(ATTENTIONS))
        chosen = self.find_layers(layers) if layers else self.attention_layers
        parts = self._encode(image, chosen if ATTENTIONS[name].uses_layers else [], name)
        return join(explain(seen, self.normal, name) for seen in parts)

    def _encode(self, image: torch.Tensor, layers: Sequence[str], attention: str) -> Iterator[EncoderGradients]:
        gradients = self.latent_dim * ATTENTIONS[attention].gradients_per_latent
        return encode_in_parts(self.vae, image, layers, max(1, gradients))

    @torch.no_grad()
    def latent_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Say what each latent looks at in images as for :meth:`explain`: ``M^i`` of eq. 1-2, ``(B, d, H, W)``.

        The maps, not negative, are averaged over layers after resizing.
        """
        parts = self._encode(image, self.attention_layers, "latent")
        return torch.cat([average_maps(latent_maps(seen), self.input_size) for seen in parts])

    @torch.no_grad()
    def collect(self, batches: Iterable[torch.Tensor], layers: Sequence[str] = ()) -> int:
        """Learn what is normal: posteriors of normal images, and the scales of maps and scores.

        Args:
            batches: All normal images, in batches of shape ``(B, 3 or 1, H, W)``; the model is in evaluation mode.
            layers: Names of the encoder's layers, beside the model's own, to learn the :class:`ResidualVariance` of.

        Returns:
            Number of images.

        Raises:
            ValueError: If there is no image, or no such layer.
        """
        posteriors, some = [], []
        names = dict.fromkeys([*self.attention_layers, *self.find_layers(layers)])
        self.departures.start(self._map_shapes(list(names)))
        for batch in batches:
            image = self.prepare_image(batch)
            seen = EncoderGradients(self.vae, image, self.departures.layers)
            self.departures.update(seen)
            posteriors.append(seen.posterior)
            some.append(image[:1])
        self.departures.finish()
        mean, log_variance = (torch.cat(parts) for parts in zip(*posteriors, strict=True))
        self.average_variance.copy_(log_variance.exp().mean(0))
        self.normal_mean.copy_(mean.mean(0))
        self.normal_variance.copy_(mean.var(0, correction=0) + self.average_variance)
        self.reference.start()
        self.reference.update(Posterior(mean[:, :, None, None], self.average_variance.clone()))
        self._calibrate(torch.cat(some[:CALIBRATION_IMAGES]), self.reference.finish())
        self.is_fitted.fill_(value=True)
        return len(mean)

    def _calibrate(self, image: torch.Tensor, left_out: LeftOut) -> None:
        """Set the scales of all attentions: that of a trained model can be changed."""
        for name, attention in ATTENTIONS.items():
            if attention.uses_matches:
                # A linear encoder's maps add up to the energy.
                shapes = self._map_shapes(self.attention_layers).values()
                per_cell = sum(1 / math.prod(shape[1:]) for shape in shapes) / len(shapes)
                self.scales.set(name, left_out.energy.mean().clamp_min(LEAST_ENERGY) * per_cell, left_out.nearest)
            else:
                maps, scores = self.explain(image, name)
                self.scales.set(name, maps.mean(), scores)

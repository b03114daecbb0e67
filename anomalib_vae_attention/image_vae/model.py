"""The image VAEs as a torch module: image in, ``InferenceBatch`` out, no autograd at inference."""

from collections.abc import Iterable, Sequence

import torch
from anomalib.data import InferenceBatch

from anomalib_vae_attention.common.argument_checks import require_choice, require_whole
from anomalib_vae_attention.reference import MAX_EXEMPLARS, make_reference, require_images
from anomalib_vae_attention.scoring import fail_safe, only_scorable, require_scorable, to_unit_interval
from anomalib_vae_attention.vae import Posterior

from .attention_maps import ATTENTIONS, ImageMaps
from .vae import IMAGE_VAES, make_image_vae

CALIBRATION_IMAGES = 16
"""Normal images from which the scales of maps and scores are estimated."""

LEAST_ENERGY = 1e-12
"""Least energy of normal images: that of latents a millionth of a standard deviation apart, about the resolution of
single precision. A VAE may well use a small part of its prior's range; copies of one image have no energy."""


class ImageVaeModel(ImageMaps):
    """An image VAE, an attention and the normal posteriors, put together.

    ================== ============================================ ===============================================
    attention          anomaly map                                  image score
    ================== ============================================ ===============================================
    energy             gradient of the latent energy times the      the latent energy to the nearest normal
                       departure from the counterfactual            posterior
    activation_energy  energy of the layer's activations against    the map's maximum
                       the reconstruction's, at its place
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
        max_exemplars: int = MAX_EXEMPLARS,
        samples: int = 8,
        seed: int = 0,
    ) -> None:
        require_choice("vae", vae, list(IMAGE_VAES))
        require_whole("samples", samples, least=1)
        defaults = IMAGE_VAES[vae]
        size, channels = tuple(input_size or defaults.input_size), channels or defaults.channels
        likelihood = likelihood or defaults.likelihood
        super().__init__(
            make_image_vae(vae, latent_dim, size, channels, likelihood, widths, hidden_dim),
            make_reference(reference, max_exemplars),
            size,
            channels,
            latent_dim,
            attention,
            attention_layers or defaults.attention_layers,
            samples,
            seed,
        )
        self.register_buffer("map_scale", torch.ones(len(ATTENTIONS)))
        self.register_buffer("score_mean", torch.zeros(len(ATTENTIONS)))
        self.register_buffer("score_std", torch.ones(len(ATTENTIONS)))
        self.register_buffer("is_fitted", torch.tensor(data=False))

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
            RuntimeError: If the model has not been fitted.
            ValueError: If the images are not of the network's size.
        """
        image = self.prepare_image(image)
        if self.training:
            noise = torch.randn(len(image), self.latent_dim, device=image.device)
            return self.vae.elbo_terms(image.contiguous(memory_format=torch.channels_last), noise)
        image, whole = only_scorable(image)
        require_scorable(image, self.is_fitted)
        maps, scores = self.explain(image)
        index = ATTENTIONS.index(self.attention)
        scores = to_unit_interval((scores - self.score_mean[index]) / self.score_std[index])
        return fail_safe(whole, scores, to_unit_interval(maps / self.map_scale[index])[:, None])

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
        posteriors, some = [], []
        self.departures.start(self.map_shapes(self.attention_layers))
        for batch in batches:
            image = self.prepare_image(batch)
            posteriors.append(self._observe(image))
            some.append(image[:1])
        require_images(len(posteriors))
        self.departures.finish()
        mean, log_variance = (torch.cat(parts) for parts in zip(*posteriors, strict=True))
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

"""Image VAEs: one vector of latents per image, trained from scratch by the ELBO."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from anomalib_vae_attention.common.argument_checks import require_choice, require_whole, require_wholes

from .conv import ConvDecoder, ConvEncoder
from .elbo import LIKELIHOODS, Bernoulli, Gaussian, kl_by_latent, kl_gradient
from .network import INPUT, Network
from .resnet import ResNetDecoder, ResNetEncoder, check_size


class NetworkDefaults(NamedTuple):
    """What an image VAE's arguments are where none is given.

    Attributes:
        input_size: Height and width in pixels.
        channels: Channels of the image: 1 grey, 3 colours.
        likelihood: ``"bernoulli"`` or ``"gaussian"``.
        attention_layers: Layers of the encoder that attention looks at.
    """

    input_size: tuple[int, int]
    channels: int
    likelihood: str
    attention_layers: tuple[str, ...]


IMAGE_VAES = {
    "resnet18": NetworkDefaults((256, 256), 3, "gaussian", ("layer2.1.conv1",)),
    "conv": NetworkDefaults((28, 28), 1, "bernoulli", ("conv2",)),
}
"""The image VAEs by name."""


class LatentPosterior(NamedTuple):
    """The posterior q(z|x) of images, a diagonal Gaussian.

    Attributes:
        mean: Means, of shape ``(B, d)``.
        log_variance: Logarithms of the variances, of shape ``(B, d)``.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor


class ImageVAE(nn.Module):
    """A VAE of whole images.

    Args:
        encoder: From images ``(B, C, H, W)`` to means and log variances ``(B, 2 d)``.
        decoder: From latents ``(B, d)`` to logits ``(B, C, H, W)``; their sigmoid is the reconstruction.
        likelihood: Likelihood of images given the logits.
    """

    def __init__(self, encoder: Network, decoder: Network, likelihood: Bernoulli | Gaussian) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood

    @staticmethod
    def split(encoded: torch.Tensor) -> LatentPosterior:
        """Take the encoder's output ``(B, 2 d)`` apart."""
        return LatentPosterior(*encoded.chunk(2, 1))

    def posterior(self, image: torch.Tensor) -> LatentPosterior:
        """Encode images of shape ``(B, C, H, W)``, pixels from 0 to 1."""
        return self.split(self.encoder(image))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode latents ``(B, d)`` to images ``(B, C, H, W)``, pixels from 0 to 1."""
        return self.decoder(latent).sigmoid()

    def elbo_terms(self, image: torch.Tensor, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return the terms of the negative ELBO of each image.

        Args:
            image: Images of shape ``(B, C, H, W)``, pixels from 0 to 1.
            noise: Standard normal noise of shape ``(B, d)`` to sample the latents with; none takes their means.

        Returns:
            ``reconstruction``, the negative log-likelihood, and ``kl``, each in nats per image, of shape ``(B,)``.
        """
        posterior = self.posterior(image)
        mean, log_variance = posterior
        return self.terms(image, posterior, mean if noise is None else mean + (0.5 * log_variance).exp() * noise)

    def terms(self, image: torch.Tensor, posterior: LatentPosterior, latent: torch.Tensor) -> dict[str, torch.Tensor]:
        """Do :meth:`elbo_terms` for images that are encoded already, with latents of shape ``(B, d)``."""
        reconstruction = self.likelihood(self.decoder(latent), image)
        return {"reconstruction": reconstruction, "kl": kl_by_latent(*posterior).sum(1)}

    def elbo_gradient(self, image: torch.Tensor) -> torch.Tensor:
        """Return the negative ELBO's gradient by images ``(B, C, H, W)``, latents at their means, without autograd.

        It is in nats per unit of brightness, and of the shape of the images.
        """
        encoded = self.encoder.trace(image)
        mean, log_variance = self.split(encoded[self.encoder.steps[-1].name])
        decoded = self.decoder.trace(mean)
        by_image, by_logits = self.likelihood.gradient(decoded[self.decoder.steps[-1].name], image)
        by_latent = self.decoder.adjoint(by_logits[:, None], decoded, [INPUT])[INPUT][:, 0]
        by_posterior = kl_gradient(mean, log_variance) + torch.cat([by_latent, torch.zeros_like(by_latent)], dim=1)
        return by_image + self.encoder.adjoint(by_posterior[:, None], encoded, [INPUT])[INPUT][:, 0]


def make_image_vae(
    name: str,
    latent_dim: int,
    input_size: Sequence[int],
    channels: int,
    likelihood: str,
    widths: Sequence[int] = (64, 128),
    hidden_dim: int = 1024,
) -> ImageVAE:
    """Make an image VAE, untrained: ``name`` is one of :data:`IMAGE_VAES`, the rest is as for ``ImageVaeModel``.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """
    require_whole("latent_dim", latent_dim, least=1)
    require_whole("hidden_dim", hidden_dim, least=1)
    require_wholes("widths", widths, least=1)
    require_wholes("input_size", input_size, least=1, count=2)
    require_choice("channels", channels, [1, 3])
    require_choice("likelihood", likelihood, list(LIKELIHOODS))
    encoder: Network
    decoder: Network
    if name == "resnet18":
        check_size(input_size)
        encoder = ResNetEncoder(channels, latent_dim)
        decoder = ResNetDecoder(channels, latent_dim, input_size)
    else:
        encoder = ConvEncoder(channels, latent_dim, input_size, widths, hidden_dim)
        decoder = ConvDecoder(encoder)
    # Processors run the convolutions twice as fast in this layout.
    return ImageVAE(encoder, decoder, LIKELIHOODS[likelihood]()).to(memory_format=torch.channels_last)

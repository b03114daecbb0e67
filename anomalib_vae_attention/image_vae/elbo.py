"""Terms of the evidence lower bound (ELBO) of image VAEs, and their gradients in closed form.

Kingma and Welling, "Auto-Encoding Variational Bayes" (ICLR 2014): the negative ELBO of an image is its expected
negative log-likelihood given the latents, summed over pixels, plus the KL divergence of the posterior from the prior.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

LEAST_VARIANCE = 1e-5
"""Least noise variance of the Gaussian likelihood, about (0.8 / 255) squared: grey levels are no finer."""
MOMENTUM = 0.05
"""Weight of a batch in the running noise variance of the Gaussian likelihood."""


def kl_by_latent(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return each latent's KL divergence of q(z|x) from the standard normal prior, in nats, not negative.

    Means, logarithms of the variances and divergences are of shape ``(B, d)``.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def kl_gradient(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return the gradient of :func:`kl_by_latent`'s sum by means and log variances, of shape ``(B, 2 d)``."""
    return torch.cat([mean, 0.5 * (log_variance.exp() - 1)], dim=1)


class Bernoulli(nn.Module):
    """Every pixel is a probability of white: for images that are black and white, or nearly so."""

    @staticmethod
    def forward(logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood of each image, summed over pixels.

        Args:
            logits: Logits of the probabilities, of shape ``(B, C, H, W)``.
            image: Images of the same shape, pixels from 0 to 1.

        Returns:
            Nats per image, of shape ``(B,)``.
        """
        loss = F.binary_cross_entropy_with_logits(logits, image, reduction="none")
        return loss.flatten(1).sum(1)

    @staticmethod
    def gradient(logits: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of :meth:`forward`'s sum by the image and by the logits, of their shape."""
        return -logits, logits.sigmoid() - image


class Gaussian(nn.Module):
    """Every pixel is Gaussian around the reconstruction, with one noise variance for all, learnt with the network.

    In training the variance is that of the batch's residuals, which maximises the likelihood (Rybkin et al., "Simple
    and Effective VAE Training with Calibrated Decoders", ICML 2021); in evaluation it is their running mean.
    """

    variance: torch.Tensor
    is_started: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("is_started", torch.tensor(data=False))

    def forward(self, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood of each image, summed over pixels; see :meth:`Bernoulli.forward`."""
        squared = (logits.sigmoid() - image).square()
        variance = self.variance
        if self.training:
            variance = squared.mean().clamp_min(LEAST_VARIANCE)
            # Not asked for on the processor: a GPU would have to be waited for, which a CUDA graph may not.
            self.variance.lerp_(variance.detach(), torch.where(self.is_started, MOMENTUM, 1.0).to(variance))
            self.is_started.fill_(value=True)
        loss = 0.5 * (squared / variance + (2 * math.pi * variance).log())
        return loss.flatten(1).sum(1)

    def gradient(self, logits: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of :meth:`forward`'s sum in evaluation mode; see :meth:`Bernoulli.gradient`."""
        mean = logits.sigmoid()
        by_image = (image - mean) / self.variance
        return by_image, -by_image * mean * (1 - mean)


LIKELIHOODS = {"bernoulli": Bernoulli, "gaussian": Gaussian}

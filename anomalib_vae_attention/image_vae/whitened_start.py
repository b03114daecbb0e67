"""The start of a ResNet-18 VAE's training: the mean image is decoded, and whitened principal components are encoded."""

from collections.abc import Callable, Iterable, Iterator
from typing import cast

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from .resnet import ResNetDecoder, ResNetEncoder
from .vae import ImageVAE

LOG_VARIANCE = -4.0
"""Logarithm of the posterior's variances at the start: latents of unit variance are told apart from their noise."""
LEAST_SHARE = 1e-6
"""Least singular value of a component, as a share of the greatest; smaller ones are rounding."""


@torch.no_grad()
def start_from(vae: ImageVAE, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
    """Start a VAE of residual networks from normal images; others are left as they are.

    The decoder draws the mean image (:meth:`ResNetDecoder.start_from`). The posterior means are the principal
    components of the features before the encoder's last layer, with the prior's variance of 1 over these images: what
    probabilistic PCA is to the feature VAE. To an untrained ResNet, parts of one kind differ far less than the
    posterior's noise; it would spend its first epochs on learning to see a difference.

    Args:
        vae: The VAE, untrained; its batch normalisation gets the statistics of these images.
        batches: Gives all images, in batches of shape ``(B, C, H, W)``, each time that it is called.

    Raises:
        ValueError: If there is no image.
    """
    encoder, decoder = vae.encoder, vae.decoder
    if not isinstance(encoder, ResNetEncoder) or not isinstance(decoder, ResNetDecoder):
        return
    decoder.start_from(_set_batch_norms(encoder, batches()))
    encoder.eval()
    features = torch.cat([encoder.trace(image, kept=["flatten"])["flatten"] for image in batches()]).double()
    encoder.train()
    _whiten(cast("nn.Linear", encoder.fc), features)


def _set_batch_norms(encoder: ResNetEncoder, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """Give batch normalisation the mean statistics of the batches; return the mean image."""
    count, total = 0, torch.zeros(())

    def counted() -> Iterator[torch.Tensor]:
        nonlocal count, total
        for image in batches:
            count, total = count + len(image), total.to(image.device) + image.sum(0)
            # A single image of one cell has no variance.
            if len(image) > 1:
                yield image

    update_bn(counted(), encoder)
    if not count:
        msg = "There is no training image to start from."
        raise ValueError(msg)
    return total / count


def _whiten(head: nn.Linear, features: torch.Tensor) -> None:
    """Make a head's means the whitened principal components of features ``(N, C)``, its log variances constant."""
    latent_dim = head.out_features // 2
    mean = features.mean(0)
    _, deviation, components = torch.linalg.svd(features - mean, full_matrices=False)
    known = int((deviation > LEAST_SHARE * deviation[0]).sum())
    used = min(latent_dim, known)
    weight = components[:used] * (len(features) ** 0.5 / deviation[:used, None])
    # Components that these images do not have stay silent.
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    head.weight[:used] = weight.to(head.weight)
    head.bias[:used] = -(weight @ mean).to(head.bias)
    head.bias[latent_dim:] = LOG_VARIANCE

"""What evaluating stacked runs needs of the GPU: codes of many images, and the loss on test batches."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.dsprites.datamodule import TEST_SEED, RandomBatches
from anomalib_vae_attention.image_vae.elbo import kl_by_latent

from .draws import unpack
from .networks import decode, encode
from .runs import StackedRuns

CHUNK = 1024
"""Images that are encoded at once, by every run."""

TEST_BATCHES, TEST_BATCH_SIZE = 100, 64
"""The test batches are those of :class:`..datamodule.DSpritesDataModule` by default."""


@torch.no_grad()
def encode_means(stack: StackedRuns, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Encode images with every run, in single precision.

    Args:
        stack: The runs.
        indices: Which images, shape ``(N,)``.

    Returns:
        Posterior means, shape ``(R, N, d)``.
    """
    runs = len(stack.generators)
    parts = []
    for chunk in torch.from_numpy(indices).to(stack.bits.device).split(CHUNK):
        images = unpack(stack.bits[chunk])
        parts.append(encode(images.expand(runs, *images.shape), stack.vae).mean)
    return torch.cat(parts, 1).cpu().numpy()


@torch.no_grad()
def loss_on_test_batches(stack: StackedRuns) -> dict[str, list[float]]:
    """Compute reconstruction error and KL divergence on test batches, the same for all runs, in single precision.

    Args:
        stack: The runs.

    Returns:
        Both in nats per image, and the other terms of the last training step, by name a value of each run.
    """
    runs, device = len(stack.generators), stack.bits.device
    generator = torch.Generator(device).manual_seed(TEST_SEED)
    indices = torch.cat(list(RandomBatches(TEST_BATCH_SIZE, TEST_BATCHES, TEST_SEED))).to(device)
    errors, divergences = [], []
    for chunk in indices.split(CHUNK):
        images = unpack(stack.bits[chunk])
        images = images.expand(runs, *images.shape)
        encoded = encode(images, stack.vae)
        noise = torch.randn(encoded.mean.shape[1:], generator=generator, device=device)
        logits = decode(encoded.mean + (0.5 * encoded.log_variance).exp() * noise, stack.vae)
        errors.append(F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum((2, 3)))
        divergences.append(kl_by_latent(encoded.mean, encoded.log_variance).sum(2))
    terms = {"reconstruction": torch.cat(errors, 1).mean(1), "kl": torch.cat(divergences, 1).mean(1)}
    return {name: value.tolist() for name, value in {**stack.terms, **terms}.items()}

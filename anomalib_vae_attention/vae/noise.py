"""What the latents leave out: noise, whose level is not the same for everything that is seen.

Probabilistic PCA has one noise variance for all cells. But a rough surface has more noise than a smooth one, so it is
judged by what the matched normal cells leave out. That is the reconstruction term of an ELBO whose noise variance
depends on what is seen, as the decoder's of Kingma and Welling (arXiv 1312.6114, appendix C.2).
"""

import torch

from .feature import Posterior

NOISE_FLOOR = 0.1
"""Noise that every cell has besides, in units of the mean noise: where nothing is left out, a trace is no defect."""
NOT_COMPARED = 1e8
"""Variance of the noise level as a latent: so large that it adds nothing to the energy between two posteriors."""


def carry_noise(posterior: Posterior, noise: torch.Tensor) -> Posterior:
    """Let a posterior carry its noise level as one more latent, the last.

    References keep it and match it as they do the others, and so know how much noise is normal for what they matched.
    They do not compare it: see :data:`NOT_COMPARED`.

    Args:
        posterior: Mean of shape ``(B, d, h, w)`` and variance of shape ``(d,)``.
        noise: Noise of shape ``(B, h, w)``, see :meth:`.FeatureVAE.noise`.

    Returns:
        Mean of shape ``(B, d + 1, h, w)`` and variance of shape ``(d + 1,)``.
    """
    level = (noise + NOISE_FLOOR).log()[:, None]
    variance = torch.cat([posterior.variance, torch.full_like(posterior.variance[:1], NOT_COMPARED)])
    return Posterior(torch.cat([posterior.mean, level], 1), variance)

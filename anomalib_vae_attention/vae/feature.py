"""The feature VAE: a linear variational autoencoder at every cell of a grid of pretrained features.

The linear VAE has a known optimum, probabilistic PCA (Tipping and Bishop, "Probabilistic Principal Component
Analysis", 1999; Lucas et al., "Don't Blame the ELBO!", NeurIPS 2019), which is where it starts.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import nn

MIN_NOISE = 1e-4
"""Least noise variance, in units of a standardised channel's variance: keeps a covariance without full rank usable."""


class Posterior(NamedTuple):
    """The approximate posterior q(z|x), a diagonal Gaussian at every cell.

    Attributes:
        mean: Posterior mean, of shape ``(B, d, h, w)``.
        variance: Posterior variance, of shape ``(d,)``: for a linear VAE it is the same for every image and cell.
    """

    mean: torch.Tensor
    variance: torch.Tensor


def _at_every_cell(weight: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Multiply the channels of every cell, ``(B, i, h, w)``, by a 1x1 kernel ``(o, i, 1, 1)``.

    A convolution in all but its cost: what comes before and after are products of rows and columns, whose layout is not
    that of convolutions.
    """
    return (weight[:, :, 0, 0] @ cells.flatten(2)).unflatten(2, cells.shape[2:])


class FeatureVAE(nn.Module):
    """A linear VAE on standardised features: ``p(F|z) = N(W z + c, s^2)``, ``q(z|F) = N(V F + b, diag(v))``.

    Features go in stacked and are decoded by layer, as only some of the layers are.

    Args:
        channels: Number of feature channels ``C_l`` of each layer, ``C`` together.
        latent_dim: Number of latents ``d`` per cell, from 1 to ``C - 1``.

    Raises:
        ValueError: If ``latent_dim`` is out of range.
    """

    def __init__(self, channels: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        total = sum(channels)
        if not 1 <= latent_dim < total:
            msg = (
                f"latent_dim must be from 1 to {total - 1}, one less than the {total} channels of the chosen "
                f"layers together, but is {latent_dim}."
            )
            raise ValueError(msg)
        ends = list(itertools.accumulate(channels, initial=0))
        self._parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
        self.encoder = nn.Conv2d(total, latent_dim, 1)
        self.decoder = nn.Conv2d(latent_dim, total, 1)
        self.log_variance = nn.Parameter(torch.zeros(latent_dim))
        self.log_noise = nn.Parameter(torch.zeros(()))

    @property
    def latent_dim(self) -> int:
        """Number of latents per cell."""
        return self.encoder.out_channels

    def posterior(self, features: torch.Tensor) -> Posterior:
        """Encode standardised features of shape ``(B, C, h, w)`` to their posterior."""
        mean = _at_every_cell(self.encoder.weight, features)
        bias = cast("torch.Tensor", self.encoder.bias)
        return Posterior(mean + bias[:, None, None], self.log_variance.exp())

    def residual(self, features: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return what the latents leave out of standardised features.

        The features less their projection on what the decoder spans. Tipping and Bishop (1999, section 3.3) find it
        from the posterior mean as ``W (W^T W)^-1 M mean``. Here that divides each latent by one less its variance.

        Args:
            features: Standardised features of shape ``(B, C, h, w)``.
            mean: Their posterior mean, of shape ``(B, d, h, w)``.

        Returns:
            Residual of shape ``(B, C, h, w)``, orthogonal to every column of the decoder.
        """
        shrunk = 1 - self.log_variance.exp()
        return features - _at_every_cell(self.decoder.weight / shrunk[:, None, None], mean)

    def noise(self, residual: torch.Tensor) -> torch.Tensor:
        """Return the noise of every cell over the noise variance that the VAE expects of all.

        Args:
            residual: See :meth:`residual`, of shape ``(B, C, h, w)``.

        Returns:
            Mean square of the ``C - d`` numbers that are free in the residual, over ``s^2``, of shape ``(B, h, w)``: 1
            on average over normal images.
        """
        return residual.square().sum(1) / self._total_noise

    def noise_gradient(self, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the gradient of half the weighted sum of the :meth:`noise` by the features, of shape ``(B, C, h, w)``.

        A projection is its own adjoint and its own square, so this is the residual but for a factor.

        Args:
            residual: See :meth:`residual`, of shape ``(B, C, h, w)``.
            weight: Weight of each cell, of shape ``(B, h, w)``.
        """
        return residual * (weight / self._total_noise)[:, None]

    @property
    def _total_noise(self) -> torch.Tensor:
        """Expected squared length of the residual."""
        return (self.encoder.in_channels - self.latent_dim) * self.log_noise.exp()

    def decode(self, latent: torch.Tensor, count: int | None = None) -> list[torch.Tensor]:
        """Decode latents to the mean of ``p(F|z)``.

        Args:
            latent: Latents of shape ``(B, d, h, w)``.
            count: How many layers to decode, the first ones; all by default.

        Returns:
            Features by layer, of shape ``(B, C_l, h, w)``.
        """
        weights, bias = self.decoder.weight, cast("torch.Tensor", self.decoder.bias)
        return [_at_every_cell(weights[part], latent) + bias[part, None, None] for part in self._parts[:count]]

    def adjoint(self, gradient: torch.Tensor) -> torch.Tensor:
        """Carry a gradient on the posterior mean ``(B, d, h, w)`` back to the features, ``(B, C, h, w)``."""
        return _at_every_cell(self.encoder.weight.transpose(0, 1), gradient)

    @torch.no_grad()
    def initialise(self, covariance: torch.Tensor) -> None:
        """Set the parameters to the optimum of the ELBO for features of zero mean: probabilistic PCA.

        With eigenvalues ``l_i`` and eigenvectors ``u_i`` of the covariance, Tipping and Bishop (1999, eq. 7 and 8)
        give ``W_i = u_i sqrt(l_i - s^2)`` and ``s^2`` the mean of the discarded eigenvalues; the exact posterior is
        ``mu_i = sqrt(l_i - s^2) / l_i u_i . F`` with variance ``v_i = s^2 / l_i``.

        Args:
            covariance: Covariance of the standardised features, of shape ``(C, C)``, float64; any rank.
        """
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)
        kept = self.latent_dim
        noise = values[kept:].mean().clamp_min(MIN_NOISE)
        values = values[:kept].clamp_min(noise * (1 + MIN_NOISE))
        weight = vectors[:, :kept] * (values - noise).sqrt()
        self.decoder.weight.copy_(weight[:, :, None, None])
        self.encoder.weight.copy_((weight / values).T[:, :, None, None])
        for bias in (self.decoder.bias, self.encoder.bias):
            nn.init.zeros_(cast("torch.Tensor", bias))
        self.log_variance.copy_((noise / values).log())
        self.log_noise.copy_(noise.log())

    def elbo_terms(self, mean: torch.Tensor, covariance: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the ELBO's terms over a data set given by the moments of its features, in closed form.

        For a linear VAE with Gaussian likelihood the expectations over q(z|F) and over the data depend on the first
        two moments only, so this equals the average over every cell of every image (Lucas et al. 2019, section 3).

        Args:
            mean: Mean of the features, of shape ``(C,)``.
            covariance: Covariance of the features, of shape ``(C, C)``.

        Returns:
            ``reconstruction`` (expected negative log-likelihood), ``kl`` and their sum ``loss`` (the negative ELBO),
            each a scalar in nats per cell.
        """
        dtype = covariance.dtype
        encode, decode = self.encoder.weight[:, :, 0, 0].to(dtype), self.decoder.weight[:, :, 0, 0].to(dtype)
        variance, noise = self.log_variance.to(dtype).exp(), self.log_noise.to(dtype).exp()
        latent_mean = encode @ mean + cast("torch.Tensor", self.encoder.bias).to(dtype)
        residual = torch.eye(len(mean), dtype=dtype, device=mean.device) - decode @ encode
        bias = mean - decode @ latent_mean - cast("torch.Tensor", self.decoder.bias).to(dtype)
        squared = (residual @ covariance * residual).sum() + bias.square().sum() + (decode.square() @ variance).sum()
        second_moment = (encode @ covariance * encode).sum(1) + latent_mean.square()
        reconstruction = 0.5 * (squared / noise + len(mean) * (math.log(2 * math.pi) + noise.log()))
        kl = 0.5 * (second_moment + variance - 1 - variance.log()).sum()
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

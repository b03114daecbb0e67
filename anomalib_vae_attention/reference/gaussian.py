"""The Gaussian: a summary of the normal posteriors whose size does not grow with their number."""

import torch

from anomalib_vae_attention.vae import Posterior

from .base import LeftOut, Match, NormalReference, require_images

CALIBRATION_IMAGES = 64
"""Number of normal images, the first ones, from which the energy of normal data is estimated."""


class Gaussian(NormalReference):
    """A Gaussian summary of the normal posteriors at every cell, from streaming sums: its size is that of no image.

    ``e(p) = (mu - m(p))^T [S(p) + diag(v)]^-1 (mu - m(p))`` with ``S(p) = Cov[mu](p) + diag(v)``, the covariance shrunk
    towards that of all cells together: about chi-squared with ``d`` degrees of freedom on normal images.

    Args:
        shrinkage: Weight of the covariance of all cells, from 0 to 1.
    """

    mean: torch.Tensor
    precision: torch.Tensor

    def __init__(self, shrinkage: float = 0.1) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("precision", torch.zeros(0))
        self.start()

    def start(self) -> None:
        """Forget everything and get ready to collect."""
        self._count = 0
        self._variance = torch.zeros(0)
        self._sum = self._outer = torch.zeros(0, dtype=torch.float64)
        self._some: list[torch.Tensor] = []

    def update(self, posterior: Posterior) -> None:
        """Add the posteriors of a batch of normal images to the sums of each cell."""
        latent = posterior.mean.detach().double().flatten(2).permute(2, 0, 1)
        if self._count == 0:
            self._size = posterior.mean.shape[2:]
            self._sum, self._outer = torch.zeros_like(latent[:, 0]), torch.zeros_like(latent[:, :1].mT @ latent[:, :1])
        self._variance = posterior.variance.detach()
        self._count += latent.shape[1]
        self._sum += latent.sum(1)
        self._outer += latent.mT @ latent
        self._some += list(posterior.mean.detach()[: CALIBRATION_IMAGES - len(self._some)])

    def finish(self) -> LeftOut:
        """Turn the sums into mean and precision of each cell; see :meth:`NormalReference.finish`."""
        require_images(self._count)
        mean, factor = self._summarise(self._count, self._sum, self._outer)
        self.precision = torch.cholesky_inverse(factor).float()
        self.mean = mean.T.reshape(-1, *self._size).float()
        energies = [self._left_out(some.double().flatten(1).T) for some in self._some]
        self.start()
        energy = torch.stack(energies).float()
        return LeftOut(energy, energy)

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Height and width of the grid that the reference was collected on."""
        return tuple(self.mean.shape[1:])

    def _summarise(self, count: int, total: torch.Tensor, outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each cell's mean ``(h w, d)`` and the Cholesky factor of its covariance ``(h w, d, d)``."""
        mean = total / count
        covariance = outer / count - mean[:, :, None] * mean[:, None, :]
        covariance = torch.lerp(covariance, covariance.mean(0, keepdim=True), self.shrinkage)
        return mean, torch.linalg.cholesky(covariance + 2 * torch.diag(self._variance.double()))

    def _left_out(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the energy ``(h, w)`` of a collected image, latents ``(h w, d)``, under the summary of the others."""
        if self._count == 1:
            return latent.new_zeros(self._size)
        outer = self._outer - latent[:, :, None] * latent[:, None, :]
        mean, factor = self._summarise(self._count - 1, self._sum - latent, outer)
        difference = torch.linalg.solve_triangular(factor, (latent - mean)[:, :, None], upper=False)
        return difference.square().sum((1, 2)).view(self._size)

    def match(self, posterior: Posterior) -> Match:
        """Measure the Mahalanobis distance of every cell; see :meth:`NormalReference.match`."""
        difference = posterior.mean - self.mean
        rows = difference.flatten(2).permute(2, 0, 1).contiguous()
        gradient = torch.bmm(rows, self.precision).permute(1, 2, 0).reshape(difference.shape)
        energy = (difference * gradient).sum(1).clamp_min(0)
        return Match(energy, gradient, self.mean.expand_as(difference), energy)

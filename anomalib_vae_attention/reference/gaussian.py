"""The Gaussian: a summary of the normal posteriors whose size does not grow with their number."""

import torch

from anomalib_vae_attention.vae import NOT_COMPARED, Posterior

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

    def start(self, one_layout: bool = False) -> None:
        """Forget everything and get ready to collect; see :meth:`NormalReference.start`."""
        del one_layout
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
        mean, covariance = self._sum / self._count, self._outer / self._count
        covariance -= mean[:, :, None] * mean[:, None, :]
        # All that a cell's covariance is shrunk towards and the variance of the other posterior.
        rest = self.shrinkage * covariance.mean(0) + 2 * torch.diag(self._variance.double())
        own = (1 - self.shrinkage) * covariance
        self.precision = _compared(torch.cholesky_inverse(torch.linalg.cholesky(own + rest)).float())
        self.mean = mean.T.reshape(-1, *self._size).float()
        energy = self._left_out(torch.stack(self._some), mean, own, rest).float()
        self.start()
        return LeftOut(energy, energy)

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Height and width of the grid that the reference was collected on."""
        return tuple(self.mean.shape[1:])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes that the buffers should have; see :meth:`NormalReference.shapes`."""
        latent_dim, height, width = self.mean.shape
        compared = self.precision.shape[2]
        if compared != latent_dim - 1:
            compared = latent_dim
        return {"mean": (latent_dim, height, width), "precision": (height * width, compared, compared)}

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Load precisions that have the noise level, too."""
        precision = state_dict.get(prefix + "precision")
        if precision is not None and precision.ndim == 3:
            state_dict[prefix + "precision"] = _compared(precision)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _left_out(
        self, latents: torch.Tensor, mean: torch.Tensor, own: torch.Tensor, rest: torch.Tensor
    ) -> torch.Tensor:
        """Return energies ``(B, h, w)`` of collected latents ``(B, d, h, w)``, each under the summary of the others.

        Without image i a cell's covariance is ``n/(n-1) Cov - n/(n-1)^2 delta delta^T``, delta the image's departure
        from the mean, and the departure from the others' mean ``n/(n-1) delta``. The Sherman-Morrison formula takes
        that out of one decomposition for all images. What covariances are shrunk towards remains that of all images.
        """
        count = self._count
        if count == 1:
            return latents.new_zeros(len(latents), *self._size)
        ratio = count / (count - 1)
        factor = torch.linalg.cholesky(ratio * own + rest)
        departure = latents.double().flatten(2).permute(2, 1, 0) - mean[:, :, None]
        energy = torch.linalg.solve_triangular(factor, departure, upper=False).square().sum(1)
        share = (1 - self.shrinkage) * ratio / (count - 1)
        return (ratio**2 * energy / (1 - share * energy)).T.reshape(-1, *self._size)

    def match(self, posterior: Posterior) -> Match:
        """Measure the Mahalanobis distance of every cell; see :meth:`NormalReference.match`."""
        compared = self.precision.shape[2]
        difference = posterior.mean[:, :compared] - self.mean[:compared]
        batch, _, height, width = difference.shape
        # Cells and all else change places as the two sides of one matrix: runtimes are slow at other permutations.
        rows = difference.reshape(batch * compared, height * width).T.contiguous().reshape(-1, batch, compared)
        by_cell = torch.bmm(rows, self.precision.to(rows.dtype)).reshape(1, height, width, batch * compared)
        gradient = by_cell.permute(0, 3, 1, 2).reshape(difference.shape)
        energy = (difference * gradient).sum(1).clamp_min(0)
        return Match(energy, gradient, self.mean.to(rows.dtype).expand_as(posterior.mean), energy)


def _compared(precision: torch.Tensor) -> torch.Tensor:
    """Leave out the last latents that no cell compares, as the noise level: less to read for every image.

    Args:
        precision: Precision of every cell, of shape ``(h w, d, d)``.

    Returns:
        That of the ``k`` first latents, of shape ``(h w, k, k)``.
    """
    count = int((precision.diagonal(dim1=1, dim2=2) > 1 / NOT_COMPARED).any(0).sum())
    return precision[:, :count, :count].clone()

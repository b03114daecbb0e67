"""PatchCore's coreset: the memory that it takes, and the same choice as anomalib's in less time.

anomalib measures the distances to the newest centre on copies of all features. Here they come from one product of a
matrix and a vector, which reads the features once and writes none. It is for accuracies and latencies, not fit times.
"""

import torch
from anomalib.models.components import KCenterGreedy
from anomalib.models.image.patchcore import torch_model
from sklearn.random_projection import johnson_lindenstrauss_min_dim

EPS = 0.9
"""Distortion of anomalib's random projection, which decides to how many numbers a cell's features are projected."""


class FastKCenterGreedy(KCenterGreedy):
    """anomalib's greedy k-centre, with distances by ``|x|^2 - 2 x c + |c|^2``: equal but for rounding."""

    def update_distances(self, cluster_center: int | torch.Tensor | None) -> None:
        """Lower each feature's distance from the nearest centre to that from a new one; none changes nothing."""
        if cluster_center is None:
            return
        centre = self.features[cluster_center].squeeze()
        if self.min_distances is None:
            self._square: torch.Tensor = self.features.square().sum(1)
            self.min_distances = torch.full_like(self._square[:, None], torch.inf)
        distance = torch.addmv(self._square, self.features, centre, alpha=-2) + centre.square().sum()
        torch.minimum(self.min_distances, distance.clamp_min_(0).sqrt_()[:, None], out=self.min_distances)


def use_fast_coreset() -> None:
    """Have PatchCore choose its coreset with :class:`FastKCenterGreedy`, in this process."""
    torch_model.KCenterGreedy = FastKCenterGreedy  # type: ignore[misc]


def fit_gib(cells: int, channels: int, fast: bool) -> float:
    """Estimate the memory that PatchCore's fit takes beyond what the process has before it.

    Args:
        cells: Cells of all training images, 1 or more.
        channels: Channels of a cell, over all layers.
        fast: Whether :func:`use_fast_coreset` is in use.

    Returns:
        GiB, in single precision: the features, as collected and stacked; their projection, with one temporary copy, two
        without ``fast``; and three vectors of distances.
    """
    projected = int(johnson_lindenstrauss_min_dim(cells, eps=EPS))
    return 4 * cells * (2 * channels + (2 if fast else 3) * projected + 3) / 2**30

"""What the metrics share: encoding images of chosen factors, and which latents count."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Encode = Callable[[torch.Tensor], torch.Tensor]
"""From images to the means of their codes, shape ``(B, d)``."""

COLLAPSED_STD = 0.05
"""A latent counts as collapsed if the standard deviation of its mean over the data is less than this.

The prior's standard deviation is 1; a latent that follows its prior whatever the image has a constant mean. Locatello
et al. (ICML 2019) use the same limit."""

BATCH = 256


class FactorData(Protocol):
    """A data set whose images are given by discrete factors, such as :class:`~..dataset.DSprites`."""

    @property
    def factors(self) -> Sequence[str]:
        """Names of the ``K`` factors."""

    @property
    def factor_sizes(self) -> Sequence[int]:
        """Number of values of each of the ``K`` factors."""

    def sample_factors(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw factor indices, shape ``(count, K)``."""

    def images_of(self, factors: torch.Tensor) -> torch.Tensor:
        """Return the images of factor indices ``(B, K)``."""


class Sample(NamedTuple):
    """Codes with the factors behind them.

    Attributes:
        codes: Shape ``(N, d)``.
        factors: Factor indices, shape ``(N, K)``.
    """

    codes: NDArray[np.float64]
    factors: NDArray[np.int64]


@torch.no_grad()
def encode_factors(data: FactorData, encode: Encode, factors: torch.Tensor) -> NDArray[np.float64]:
    """Encode the images of factor indices ``(N, K)``, 256 at a time, to codes of shape ``(N, d)``.

    Raises:
        ValueError: If a code is not finite.
    """
    # One array from the start: kept one by one, codes would lie between the large blocks that the encoder has freed,
    # and keep the allocator from using these again.
    codes = np.empty((0, 0))
    for start in range(0, len(factors), BATCH):
        part = encode(data.images_of(factors[start : start + BATCH])).cpu().numpy()
        if not start:
            codes = np.empty((len(factors), part.shape[1]))
        codes[start : start + BATCH] = part
    if not np.isfinite(codes).all():
        msg = "the encoder gives codes that are not finite: no metric can be computed"
        raise ValueError(msg)
    return codes


def draw_sample(data: FactorData, encode: Encode, count: int, generator: torch.Generator) -> Sample:
    """Draw ``count`` images uniformly from all factors and encode them."""
    factors = data.sample_factors(count, generator)
    return Sample(encode_factors(data, encode, factors), factors.numpy())


def active_latents(codes: NDArray[np.float64], limit: float = COLLAPSED_STD) -> NDArray[np.int64]:
    """Return the indices of the latents that are not collapsed, for codes of shape ``(N, d)``."""
    return np.nonzero(codes.std(0) >= limit)[0]

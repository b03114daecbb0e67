"""The mutual information gap: is each factor told by one latent alone?"""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score

from .sampling import Sample, active_latents, gap_of_top_two

BINS = 20


def mutual_information_gap(sample: Sample) -> dict[str, float]:
    """Compute the mutual information gap (MIG): the mean of ``(I(z_first; v_k) - I(z_second; v_k)) / H(v_k)``.

    Chen et al. ("Isolating sources of disentanglement in VAEs", NeurIPS 2018, eq. 6), with the estimator of Locatello
    et al. (ICML 2019): the means of the codes, cut into 20 bins of equal width from least to greatest. Collapsed
    latents tell nothing: their information is 0. A factor that does not vary in the sample has a gap of 0.

    Returns:
        ``mig`` from 0 to 1, the mean over the factors.
    """
    codes, factors = sample
    information = np.zeros((codes.shape[1], factors.shape[1]))
    for latent in active_latents(codes):
        binned = _bins(codes[:, latent])
        information[latent] = [mutual_info_score(factor, binned) for factor in factors.T]
    entropy = np.array([mutual_info_score(factor, factor) for factor in factors.T])
    return {"mig": float(np.mean(gap_of_top_two(information) / np.where(entropy > 0, entropy, 1)))}


def _bins(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cut values into bins of equal width, numbered from 1; the greatest value has a bin of its own."""
    return np.digitize(values, np.histogram_bin_edges(values, BINS)[:-1])

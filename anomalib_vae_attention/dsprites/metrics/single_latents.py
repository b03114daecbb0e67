"""Scores of single latents: is there a latent that tells a factor, and does it alone?"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from .sampling import Sample, active_latents

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
        # The greatest value has a bin of its own.
        binned = np.digitize(codes[:, latent], np.histogram_bin_edges(codes[:, latent], BINS)[:-1])
        information[latent] = [mutual_info_score(factor, binned) for factor in factors.T]
    entropy = np.array([mutual_info_score(factor, factor) for factor in factors.T])
    return {"mig": float(np.mean(_gap_of_top_two(information) / np.where(entropy > 0, entropy, 1)))}


def separated_attribute_predictability(seen: Sample, unseen: Sample) -> dict[str, float]:
    """Compute the separated attribute predictability (SAP).

    Kumar et al. ("Variational inference of disentangled latent concepts", ICLR 2018, section 3). As in Locatello et al.
    (ICML 2019) every factor is a class, predicted from one latent by a linear support vector machine (C = 0.01, classes
    weighted alike). It learns from what is seen; its accuracy is that on the unseen. Collapsed latents score 0.

    Returns:
        ``sap`` from 0 to 1, the mean over the factors.
    """
    scores = np.zeros((seen.codes.shape[1], seen.factors.shape[1]))
    for latent in active_latents(seen.codes):
        # A factor that does not vary cannot be learnt.
        for factor in np.nonzero(seen.factors.std(0))[0]:
            machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
            with warnings.catch_warnings():
                # One latent says little about some factors; how far the optimiser got does not matter then.
                warnings.simplefilter("ignore", ConvergenceWarning)
                machine.fit(seen.codes[:, [latent]], seen.factors[:, factor])
            scores[latent, factor] = machine.score(unseen.codes[:, [latent]], unseen.factors[:, factor])
    return {"sap": float(np.mean(_gap_of_top_two(scores)))}


def _gap_of_top_two(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the difference between the two greatest scores of each factor, for scores of shape ``(d, K)``.

    A latent that is missing scores 0: with one latent the gap is its score, without any it is 0.
    """
    padded = np.vstack([scores, np.zeros((2, scores.shape[1]))])
    ordered = np.sort(padded, axis=0)
    return ordered[-1] - ordered[-2]


def explained_variance(sample: Sample, names: Sequence[str]) -> dict[str, float]:
    """Find for each factor the latent of which it explains the greatest share of the variance.

    The share is Pearson's correlation ratio: the variance of the latent's means given the factor's value, over that
    of the latent.

    Returns:
        ``explained_`` with each of the factors' names, from 0 to 1; 0 if all latents are collapsed.
    """
    codes, factors = sample
    codes = codes[:, active_latents(codes)]
    shares = dict.fromkeys([f"explained_{name}" for name in names], 0.0)
    for name, values in zip(shares, factors.T if codes.shape[1] else [], strict=False):
        means = pd.DataFrame(codes).groupby(values).transform("mean")
        shares[name] = min(1.0, float((means.var(ddof=0) / codes.var(0)).max()))
    return shares

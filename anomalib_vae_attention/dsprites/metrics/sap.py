"""Separated attribute predictability: how much better does the best latent predict a factor than the next one?"""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from .sampling import Encode, FactorData, Sample, active_latents, draw_sample, gap_of_top_two


def separated_attribute_predictability(
    data: FactorData, encode: Encode, train: int = 10_000, test: int = 5_000, seed: int = 0
) -> dict[str, float]:
    """Compute the separated attribute predictability (SAP) of an encoder.

    Kumar et al. ("Variational inference of disentangled latent concepts", ICLR 2018, section 3). As in Locatello et al.
    (ICML 2019) every factor is a class, predicted from one latent by a linear support vector machine (C = 0.01, classes
    weighted alike). It learns from ``train`` images; its accuracy on ``test`` more counts.

    Returns:
        ``sap`` from 0 to 1, the mean over the factors.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = draw_sample(data, encode, train, generator)
    unseen = draw_sample(data, encode, test, generator)
    return sap_of(seen, unseen)


def sap_of(seen: Sample, unseen: Sample) -> dict[str, float]:
    """Compute the score from codes and factors to train and to test on; collapsed latents score 0."""
    scores = np.zeros((seen.codes.shape[1], seen.factors.shape[1]))
    for latent in active_latents(seen.codes):
        for factor in range(scores.shape[1]):
            known = seen.factors[:, factor]
            if known.std() == 0:
                continue
            machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
            with warnings.catch_warnings():
                # One latent says little about some factors; how far the optimiser got does not matter then.
                warnings.simplefilter("ignore", ConvergenceWarning)
                machine.fit(seen.codes[:, [latent]], known)
            scores[latent, factor] = machine.score(unseen.codes[:, [latent]], unseen.factors[:, factor])
    return {"sap": float(np.mean(gap_of_top_two(scores)))}

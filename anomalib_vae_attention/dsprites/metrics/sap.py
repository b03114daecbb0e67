"""Separated attribute predictability: how much better does the best latent predict a factor than the next one?"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from .sampling import Sample, active_latents, gap_of_top_two


def separated_attribute_predictability(seen: Sample, unseen: Sample) -> dict[str, float]:
    """Compute the separated attribute predictability (SAP).

    Kumar et al. ("Variational inference of disentangled latent concepts", ICLR 2018, section 3). As in Locatello et al.
    (ICML 2019) every factor is a class, predicted from one latent by a linear support vector machine (C = 0.01, classes
    weighted alike). Collapsed latents score 0.

    Args:
        seen: What it learns from.
        unseen: On which its accuracy counts.

    Returns:
        ``sap`` from 0 to 1, the mean over the factors.
    """
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

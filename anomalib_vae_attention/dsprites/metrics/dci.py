"""Disentanglement, completeness and informativeness: which latents does a predictor of the factors use?"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import Lasso
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from .sampling import Sample, active_latents


def disentanglement_completeness_informativeness(
    seen: Sample, unseen: Sample, learner: Literal["boosting", "lasso"], seed: int = 0
) -> dict[str, float]:
    """Compute disentanglement, completeness and informativeness (DCI).

    Eastwood and Williams ("A framework for the quantitative evaluation of disentangled representations", ICLR 2018,
    section 2). The ``learner`` predicts the factors, learns from what is seen and is tested on the unseen. Collapsed
    latents have no importance:

    - ``boosting``: scikit-learn's gradient-boosted trees, each factor a class, as in Locatello et al. (ICML 2019).
      Informativeness is the test accuracy. 40 orientations times 100 trees take their time.
    - ``lasso``: linear regression with an L1 penalty of 0.02, one of Eastwood and Williams's own; factors are numbers,
      standardised like the codes. Informativeness is the squared correlation of prediction and factor on the test
      images. A second's work, but blind to what is not linear.

    Returns:
        ``dci_disentanglement``, ``dci_completeness`` and ``dci_informativeness``, each from 0 to 1; all 0 if every
        latent is collapsed.
    """
    active = active_latents(seen.codes)
    importance = np.zeros((seen.codes.shape[1], seen.factors.shape[1]))
    right = np.zeros(seen.factors.shape[1])
    if len(active):
        predict = _boosting if learner == "boosting" else _lasso
        kept = [Sample(sample.codes[:, active], sample.factors) for sample in (seen, unseen)]
        for factor in np.nonzero(seen.factors.std(0))[0]:
            importance[active, factor], right[factor] = predict(kept[0], kept[1], int(factor), seed)
    return {
        "dci_disentanglement": _weighted_concentration(importance),
        "dci_completeness": _weighted_concentration(importance.T),
        "dci_informativeness": float(right.mean()),
    }


def _boosting(seen: Sample, unseen: Sample, factor: int, seed: int) -> tuple[NDArray[np.float64], float]:
    """Return the importance of each latent in gradient-boosted trees, and their accuracy."""
    trees = GradientBoostingClassifier(random_state=seed).fit(seen.codes, seen.factors[:, factor])
    return trees.feature_importances_, float(trees.score(unseen.codes, unseen.factors[:, factor]))


def _lasso(seen: Sample, unseen: Sample, factor: int, seed: int) -> tuple[NDArray[np.float64], float]:
    """Return the size of each latent's coefficient in a lasso, and the squared correlation of what it predicts."""
    line = make_pipeline(StandardScaler(), Lasso(alpha=0.02, random_state=seed))
    line.fit(seen.codes, scale(seen.factors[:, factor].astype(float)))
    predicted, truth = line.predict(unseen.codes), unseen.factors[:, factor]
    constant = predicted.std() == 0 or truth.std() == 0
    return np.abs(line[-1].coef_), 0.0 if constant else float(np.corrcoef(predicted, truth)[0, 1] ** 2)


def _weighted_concentration(importance: NDArray[np.float64]) -> float:
    """Return ``sum_i rho_i (1 - H(P_i))``: each row's share of all importance, times how concentrated the row is.

    ``H`` is the entropy to the base of the number of columns; a row without importance has no weight.
    """
    kept = importance[importance.sum(1) > 0]
    if not len(kept):
        return 0.0
    concentration = 1 - entropy(kept, base=max(2, importance.shape[1]), axis=1)
    return float(np.average(concentration, weights=kept.sum(1)))

"""The VAEs: networks with a posterior, a decoder and the adjoint of the posterior mean beside each forward."""

from .feature import FeatureVAE, Posterior
from .grid import FeatureGrid
from .noise import NOT_COMPARED, carry_noise

__all__ = ["NOT_COMPARED", "FeatureGrid", "FeatureVAE", "Posterior", "carry_noise"]

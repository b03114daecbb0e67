"""The VAEs: networks with a posterior, a decoder and the adjoint of the posterior mean beside each forward."""

from .feature import FeatureVAE, Posterior
from .grid import FeatureGrid
from .noise import carry_noise

__all__ = ["FeatureGrid", "FeatureVAE", "Posterior", "carry_noise"]

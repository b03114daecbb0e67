"""Normal references: what the posteriors of normal images look like, and how far another posterior is from them.

Both references answer the same question, for eq. 4 of Liu et al. (CVPR 2020): given the posterior of an image, which
normal latent does each cell compare with, and how large is the difference over the variance of both?
"""

from .base import LeftOut, Match, NormalReference, require_images
from .exemplars import Exemplars
from .gaussian import Gaussian
from .make import make_reference

__all__ = ["Exemplars", "Gaussian", "LeftOut", "Match", "NormalReference", "make_reference", "require_images"]

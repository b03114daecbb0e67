"""The embedded data set: a small data set in the layout of MVTec AD that the package draws itself."""

from .embedded import EmbeddedAD

__all__ = ["EmbeddedAD"]

"""The datamodules: the embedded data set, which the package draws itself, and one-class MNIST."""

from .embedded import EmbeddedAD
from .mnist import OneClassMNIST

__all__ = ["EmbeddedAD", "OneClassMNIST"]

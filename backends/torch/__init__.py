"""The reference backend: plain torch, on any device. Importing it registers its kernels."""

from ktc.backends.torch import reference

__all__ = ["reference"]

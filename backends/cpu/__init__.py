"""The CPU backend: ops in torch's namespace `kt_cpu` over the C++ kernels. Importing it registers its kernels."""

from ktc.backends.cpu import embedding, linear

__all__ = ["embedding", "linear"]

"""The backend in plain torch, on any device: the references, and kernels on blocks. Importing it registers them."""

from ktc.backends.torch import (
    attention_pieces,
    embedding_blocks,
    experts_blocks,
    linear_blocks,
    mla_attention_blocks,
    reference,
)

__all__ = [
    "attention_pieces",
    "embedding_blocks",
    "experts_blocks",
    "linear_blocks",
    "mla_attention_blocks",
    "reference",
]

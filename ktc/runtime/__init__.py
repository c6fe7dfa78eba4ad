"""Running a placed model: paged KV cache, steps of the captured graph, `generate()`, chat."""

from ktc.runtime.blocks import BlockAllocator, Sequence
from ktc.runtime.cache import KtcCache
from ktc.runtime.engine import Engine
from ktc.runtime.errors import (
    AttentionMaskError,
    CacheMismatchError,
    InvalidInputError,
    KvCacheFull,
    NoChatTemplateError,
    UnsupportedCallError,
)
from ktc.runtime.generation import generation_defaults
from ktc.runtime.kv import KvPool
from ktc.runtime.model import PlacedModel, placed_model
from ktc.runtime.step import Step

__all__ = [
    "AttentionMaskError",
    "BlockAllocator",
    "CacheMismatchError",
    "Engine",
    "InvalidInputError",
    "KtcCache",
    "KvCacheFull",
    "KvPool",
    "NoChatTemplateError",
    "PlacedModel",
    "Sequence",
    "Step",
    "UnsupportedCallError",
    "generation_defaults",
    "placed_model",
]

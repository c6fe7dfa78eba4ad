"""What `cache` rules mean: how many tokens of KV cache to reserve, and in which dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ktc.grammar.diagnostics import Diagnostic, Label
from ktc.grammar.values import Call, Symbol
from ktc.passes.bind import show
from ktc.passes.context import Context, Write

from ktc.dialect.cache_formats import Q8_0

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "q8_0": Q8_0}
DEFAULT_TOKENS = 4096
KINDS = ("paged", "contiguous")
"""`contiguous` is the paged cache with blocks in order; both name the same kernels today."""


@dataclass(frozen=True)
class CacheChoice:
    """The cache of one attention module: `tokens` over all sequences, dtype of its tensors, and who decided."""

    tokens: int
    dtype: torch.dtype
    write: Write | None


def cache_of(site: str, context: Context) -> CacheChoice:
    """The cache that the rules give to an attention module; in the activations' dtype unless a rule says otherwise."""
    write = context.attribute(site, "cache")
    positions = int(getattr(context.config, "max_position_embeddings", DEFAULT_TOKENS) or DEFAULT_TOKENS)
    if write is None or not isinstance(write.value, Call):
        return CacheChoice(min(positions, DEFAULT_TOKENS), context.dtype, write)
    options = write.value.options
    named = options.get("dtype")
    dtype = DTYPES[named.name] if isinstance(named, Symbol) else context.dtype
    tokens = options.get("tokens", min(positions, DEFAULT_TOKENS))
    return CacheChoice(int(tokens), dtype, write)  # type: ignore[arg-type]


def cache_problem(write: Write) -> Diagnostic | None:
    """KT405 for a cache that does not exist or an option it does not have."""
    value, label = write.value, (Label(write.span),)
    name = value.name if isinstance(value, (Call, Symbol)) else show(value)
    if name not in KINDS:
        return Diagnostic("KT405", f"there is no cache `{name}`", label, (f"caches: {', '.join(KINDS)}",))
    if not isinstance(value, Call):
        return None
    for option, given in value.options.items():
        if option == "dtype" and not (isinstance(given, Symbol) and given.name in DTYPES):
            return Diagnostic(
                "KT405", f"a cache cannot hold `{show(given)}`", label, (f"dtypes: {', '.join(DTYPES)}",)
            )
        if option == "tokens" and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            return Diagnostic(
                "KT405", f"`tokens` of a cache is a whole number above 0, not `{show(given)}`", label
            )
        if option not in ("dtype", "tokens"):
            return Diagnostic(
                "KT405", f"a cache has no option `{option}`", label, ("options: dtype, tokens",)
            )
    return None

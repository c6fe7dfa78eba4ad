"""cpu.mla_attention: latent attention over a paged cache of latents, its two weights packed head by head.

A sequence's new tokens meet its cache in one of two ways, whichever takes fewer multiply-adds by its own sizes:

- absorbed: queries go through `w_key` to the space of latents, where all heads share one key, and results come back
  through `w_value`. Decoding: both weights are read once for up to 64 tokens, contexts are cut for the threads.
- expanded: each head's keys and values are made from the latents, 64 positions at a time, for up to 1024 tokens.
  Prefill: for DeepSeek-V3 attention takes 0.29 of the absorbed multiply-adds, and expanding a position as many as
  171 tokens save. Measured (Zen 4, rounded operands), expanding is faster from 48 new tokens without a context on,
  from 110 after 512 cached ones and 128 after 4096.

Levels avx512vnni and amx round operands, unless a cache is float32: see cpu.attention. Quantised weights meet int8
activations where they are absorbed, as in cpu.linear, and stand for their exact values where they are expanded (there
rounded to 16-bit integers with a step a row, NMSE 5e-8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends.cpu import packed, packed_matrices
from ktc.backends.cpu.attention import CACHE_TYPES, check_cache
from ktc.backends.cpu.library import OperandError, arguments, define, insert, refuse, shape_of
from ktc.backends.cpu.mla_expand import heads
from ktc.backends.registry import Kernel, Option, Weight, register

from ktc import _cpu
from ktc.dialect.cache_formats import DTYPES

FORMS = ("auto", "absorbed", "expanded")
OPERANDS = (
    "q_nope", "q_rope", "latent", "k_rope", "w_key", "w_value", "key_cache", "value_cache", "seq_starts",
    "context_lens", "block_tables", "slots", "scale",
)  # fmt: skip
_STEPS = {"nope": 32, "latent": 32, "rope": 16, "value": 16}
_INTEGERS = {
    "seq_starts": torch.int32,
    "context_lens": torch.int32,
    "block_tables": torch.int32,
    "slots": torch.int64,
}


def mla_attention(
    q_nope: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, k_rope: torch.Tensor, w_key: torch.Tensor,
    w_value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, seq_starts: torch.Tensor,
    context_lens: torch.Tensor, block_tables: torch.Tensor, slots: torch.Tensor, scale: float,
    key_format: str, value_format: str, value_dim: int, form: str = "auto",
) -> torch.Tensor:  # fmt: skip
    """See `kt.mla_attention`; w_key and w_value as `pack` writes [H, L, N] and [H, value_dim, L].

    Args:
        form: "absorbed" or "expanded" for every sequence, whatever its sizes; "auto" chooses.

    Raises:
        OperandError: dtypes or shapes that do not fit; sequences, blocks or slots outside the caches.
    """
    q_nope, q_rope = heads("mla_attention", "q_nope", q_nope), heads("mla_attention", "q_rope", q_rope)
    k_rope = heads("mla_attention", "k_rope", k_rope)
    _, count, tokens, nope = q_nope.shape
    rope = q_rope.shape[3]
    if q_rope.shape[1:3] != (count, tokens):
        raise refuse("mla_attention", "q_rope", q_rope, f"float32[1, {count}, {tokens}, R], as `q_nope` is")
    if k_rope.shape[1:] != (1, tokens, rope):
        raise refuse("mla_attention", "k_rope", k_rope, f"float32[1, 1, {tokens}, {rope}]")
    if latent.dtype is not torch.float32 or latent.dim() != 3 or latent.shape[:2] != (1, tokens):
        raise refuse("mla_attention", "latent", latent, f"float32[1, {tokens}, L]")
    if latent.stride(2) != 1:
        latent = latent.contiguous()
    depth = latent.shape[2]
    blocks, _, block_size, _ = check_cache("mla_attention", "key_cache", key_cache, 1, depth)
    if check_cache("mla_attention", "value_cache", value_cache, 1, rope)[::2] != (blocks, block_size):
        wanted = f"of {blocks} blocks of {block_size}, as `key_cache` is"
        raise refuse("mla_attention", "value_cache", value_cache, wanted)
    check = packed_matrices.check
    check("mla_attention", "w_key", w_key, key_format, (count, depth, nope), "heads")
    check("mla_attention", "w_value", w_value, value_format, (count, value_dim, depth), "heads")
    sequences = context_lens.numel()
    if block_tables.dim() != 2 or block_tables.shape[0] != sequences or seq_starts.numel() != sequences + 1:
        wanted = f"[{sequences}, n], with {sequences + 1} `seq_starts`"
        raise refuse("mla_attention", "block_tables", block_tables, wanted)
    if slots.numel() != tokens:
        raise refuse("mla_attention", "slots", slots, f"int64[{tokens}]")
    seq_starts, context_lens = _integers("seq_starts", seq_starts), _integers("context_lens", context_lens)
    block_tables, slots = _integers("block_tables", block_tables), _integers("slots", slots)
    out = torch.empty((1, tokens, count, value_dim))
    try:
        _cpu.latent_attention(
            q_nope.data_ptr(), q_nope.stride(1), q_nope.stride(2),
            q_rope.data_ptr(), q_rope.stride(1), q_rope.stride(2),
            latent.data_ptr(), latent.stride(1), k_rope.data_ptr(), k_rope.stride(2),
            w_key.data_ptr(), packed.format_id(key_format), w_value.data_ptr(), packed.format_id(value_format),
            key_cache.data_ptr(), CACHE_TYPES[key_cache.dtype],
            value_cache.data_ptr(), CACHE_TYPES[value_cache.dtype],
            count, tokens, nope, rope, depth, value_dim, blocks, block_size,
            seq_starts.data_ptr(), context_lens.data_ptr(), block_tables.data_ptr(), sequences,
            block_tables.shape[1], slots.data_ptr(), scale, FORMS.index(form), out.data_ptr(),
        )  # fmt: skip
    except ValueError as error:
        raise OperandError(f"kt_cpu.{error}") from error
    return out


def _integers(name: str, x: torch.Tensor) -> torch.Tensor:
    if x.dtype is not _INTEGERS[name]:
        raise refuse("mla_attention", name, x, str(_INTEGERS[name]).removeprefix("torch."))
    return x.contiguous()


def fake(q_nope: torch.Tensor, *operands: Any) -> torch.Tensor:
    """Shape of `mla_attention`."""
    value_dim = next(value for value in reversed(operands) if isinstance(value, int))
    return q_nope.new_empty((1, q_nope.shape[2], q_nope.shape[1], value_dim))


OP = define(
    "mla_attention(Tensor q_nope, Tensor q_rope, Tensor latent, Tensor k_rope, Tensor w_key, Tensor w_value,"
    " Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor seq_starts, Tensor context_lens, Tensor block_tables,"
    " Tensor slots, float scale, str key_format, str value_format, int value_dim, str form='auto') -> Tensor",
    mla_attention,
    fake,
)


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.mla_attention -> kt_cpu.mla_attention."""
    bound, values = arguments(node), weights["w_value"]
    args = (*(bound[name] for name in OPERANDS), weights["w_key"].format, values.format, values.shape[1])
    return insert(graph, node, OP, (*args, options["form"]) if "form" in options else args)


def supports(node: fx.Node) -> str | None:
    """Why the kernel cannot run a node, in words, or None."""
    bound = arguments(node)
    for name in ("w_key", "w_value"):
        weight = bound[name]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or shape_of(weight) is None:
            return f"its `{name}` is computed, not a parameter"
    key, value, rope = shape_of(bound["w_key"]), shape_of(bound["w_value"]), shape_of(bound["q_rope"])
    if key is None or value is None or rope is None:
        return "the shapes of its heads are unknown"
    sizes = {"nope": key[2], "latent": key[1], "rope": rope[3], "value": value[1]}
    for name, step in _STEPS.items():
        if sizes[name] % step:
            return f"its {name} depth is {sizes[name]}, which is no multiple of {step}"
    return None


def workspace(node: fx.Node, weights: Mapping[str, Weight]) -> int:
    """Scratch of all threads: absorbed queries and partial results of 64 tokens, expanded keys of 1024."""
    bound = arguments(node)
    count, depth, nope = weights["w_key"].shape
    shape = shape_of(bound["q_rope"])
    rope = int(shape[3]) if shape is not None else 0
    return _cpu.latent_workspace(count, nope, rope, depth, weights["w_value"].shape[1])


register(
    Kernel(
        name="cpu.mla_attention",
        op="kt.mla_attention",
        hardware=frozenset({"cpu"}),
        lower=lower,
        formats=frozenset(packed.PACKED),
        options={"form": Option(str, "how new tokens meet the cache; auto by sizes", FORMS)},
        rank=10,
        supports=supports,
        layout=packed_matrices.LAYOUT,
        workspace=workspace,
        cache_dtypes=frozenset(DTYPES),
    )
)

"""cpu.mla_expand: copies the parts of latent attention's queries, keys and values to where attention wants them."""

from __future__ import annotations

import torch
from ktc.backends.cpu.library import define, refuse, register_plain

from ktc import _cpu


def mla_expand(
    q_nope: torch.Tensor, q_rope: torch.Tensor, kv: torch.Tensor, k_rope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `kt.mla_expand`; float32 operands of any strides -> q, k [1, H, T, N + R], v [1, H, T, V].

    Raises:
        OperandError: dtypes or shapes that do not fit.
    """
    q_nope, q_rope = heads("mla_expand", "q_nope", q_nope), heads("mla_expand", "q_rope", q_rope)
    k_rope = heads("mla_expand", "k_rope", k_rope)
    _, count, tokens, nope = q_nope.shape
    rope = q_rope.shape[3]
    if q_rope.shape[1:3] != (count, tokens):
        raise refuse("mla_expand", "q_rope", q_rope, f"float32[1, {count}, {tokens}, R], as `q_nope` is")
    if k_rope.shape[1:] != (1, tokens, rope):
        raise refuse("mla_expand", "k_rope", k_rope, f"float32[1, 1, {tokens}, {rope}]")
    entry = kv.shape[-1] // count if kv.dim() == 3 else 0
    if kv.dtype is not torch.float32 or kv.shape != (1, tokens, count * entry) or entry <= nope:
        raise refuse("mla_expand", "kv", kv, f"float32[1, {tokens}, {count} * (N + V)], N = {nope}")
    if kv.stride(2) != 1:
        kv = kv.contiguous()
    q, k = (q_nope.new_empty((1, count, tokens, nope + rope)) for _ in range(2))
    v = q_nope.new_empty((1, count, tokens, entry - nope))
    _cpu.latent_expand(
        q_nope.data_ptr(), q_nope.stride(1), q_nope.stride(2), q_rope.data_ptr(), q_rope.stride(1),
        q_rope.stride(2), kv.data_ptr(), kv.stride(1), k_rope.data_ptr(), k_rope.stride(2),
        count, tokens, nope, rope, entry - nope, q.data_ptr(), k.data_ptr(), v.data_ptr(),
    )  # fmt: skip
    return q, k, v


def heads(op: str, name: str, x: torch.Tensor) -> torch.Tensor:
    """x float32[1, H, T, depth], its last dimension made contiguous where it is not, else OperandError."""
    if x.dtype is not torch.float32 or x.dim() != 4 or x.shape[0] != 1 or 0 in (x.shape[1], x.shape[3]):
        raise refuse(op, name, x, "float32[1, heads, tokens, depth]")
    return x if x.stride(3) == 1 else x.contiguous()


def fake(
    q_nope: torch.Tensor, q_rope: torch.Tensor, kv: torch.Tensor, k_rope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes of `mla_expand`."""
    _, count, tokens, nope = q_nope.shape
    whole = (1, count, tokens, nope + q_rope.shape[3])
    values = (1, count, tokens, kv.shape[2] // count - nope)
    return q_nope.new_empty(whole), q_nope.new_empty(whole), q_nope.new_empty(values)


OP = define(
    "mla_expand(Tensor q_nope, Tensor q_rope, Tensor kv, Tensor k_rope) -> (Tensor, Tensor, Tensor)",
    mla_expand,
    fake,
)
register_plain("mla_expand", OP, ("q_nope", "q_rope", "kv", "k_rope"))

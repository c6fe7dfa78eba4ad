"""kt.mla_expand: queries, keys and values of every head from what multi-head latent attention computes.

Its operands are those of DeepSeek-V2 (2024), section 2.1, whose keys and values come from a shared latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ktc.dialect.cost import nbytes
from ktc.dialect.spec import Cost, define


def reference(
    q_nope: torch.Tensor, q_rope: torch.Tensor, kv: torch.Tensor, k_rope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Joins the parts of each head; all three results are new and contiguous.

    Args:
        q_nope: [1, H, T, N], the part of the queries without positions; q_rope: [1, H, T, R], rotated.
        kv: [1, T, H * (N + V)], keys and values of each head that the latent expands to.
        k_rope: [1, 1, T, R], rotated, the same for all heads.

    Returns:
        q and k [1, H, T, N + R], v [1, H, T, V].
    """
    _, heads, tokens, nope = q_nope.shape
    parts = kv.reshape(1, tokens, heads, kv.shape[2] // heads).transpose(1, 2)
    q = torch.cat((q_nope, q_rope), dim=-1)
    k = torch.cat((parts[..., :nope], k_rope.expand(-1, heads, -1, -1)), dim=-1)
    return q, k, parts[..., nope:].clone(memory_format=torch.contiguous_format)


def fake(
    q_nope: torch.Tensor, q_rope: torch.Tensor, kv: torch.Tensor, k_rope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes of `reference`."""
    _, heads, tokens, nope = q_nope.shape
    whole = (1, heads, tokens, nope + q_rope.shape[3])
    values = (1, heads, tokens, kv.shape[2] // heads - nope)
    return q_nope.new_empty(whole), q_nope.new_empty(whole), q_nope.new_empty(values)


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """Operands once in, results once out; the rotated key goes out once a head."""
    q_rope = arguments["q_rope"]
    read = sum(nbytes(arguments[name]) for name in ("q_nope", "q_rope", "kv", "k_rope"))
    return Cost(0, read, read - nbytes(arguments["k_rope"]) + nbytes(q_rope))


SPEC = define(
    "mla_expand(Tensor q_nope, Tensor q_rope, Tensor kv, Tensor k_rope) -> (Tensor q, Tensor k, Tensor v)",
    reference=reference,
    fake=fake,
    cost=cost,
    outputs=("q", "k", "v"),
)

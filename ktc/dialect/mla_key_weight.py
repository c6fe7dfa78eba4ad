"""kt.mla_key_weight: the part of a latent expansion that makes keys; a view of a weight, folded at loading."""

from __future__ import annotations

import torch

from ktc.dialect.cost import moved
from ktc.dialect.spec import define


def reference(w: torch.Tensor, heads: int, nope: int) -> torch.Tensor:
    """w[H * (N + V), L], the rows of each head's key before those of its value -> [H, L, N], contiguous."""
    parts = torch.unflatten(w, 0, (heads, -1))[:, :nope]
    return parts.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def fake(w: torch.Tensor, heads: int, nope: int) -> torch.Tensor:
    """Shape of `reference`."""
    return w.new_empty((heads, w.shape[1], nope))


SPEC = define(
    "mla_key_weight(Tensor w, int heads, int nope) -> Tensor",
    reference=reference,
    fake=fake,
    cost=moved(fake),
)

"""kt.expert_rows: experts stored columns first, as rows; a view of a weight, folded when it is loaded."""

from __future__ import annotations

import torch

from ktc.dialect import deinterleave
from ktc.dialect.cost import moved
from ktc.dialect.spec import define


def reference(w: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """w[E, K, R] -> [E, R, K], contiguous; `interleaved`: the even of the R before the odd (GPT-OSS)."""
    ordered = deinterleave.reference(w) if interleaved else w
    return ordered.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def fake(w: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """Shape of `reference`."""
    return w.new_empty((w.shape[0], w.shape[2], w.shape[1]))


SPEC = define(
    "expert_rows(Tensor w, bool interleaved=False) -> Tensor",
    reference=reference,
    fake=fake,
    cost=moved(fake),
)

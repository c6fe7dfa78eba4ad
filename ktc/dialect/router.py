"""kt.router: which experts each token of a mixture of experts goes to, and with what weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ktc.dialect.cost import nbytes
from ktc.dialect.spec import Cost, define

SCORINGS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "softmax_chosen": lambda logits: logits,  # the softmax follows the choice
}
GROUP_SCORES = ("max", "top2")


def reference(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    top_k: int,
    scoring: str = "softmax",
    groups: int = 1,
    kept_groups: int = 1,
    group_score: str = "max",
    normalize: bool = False,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` best of E experts for each of T tokens; computed in float32.

    Args:
        logits: [T, E], of a linear before this op.
        bias: [E], added to the scores for the choice only (Wang et al. 2024, DeepSeek-V3's correction bias).
        top_k: experts of each token.
        scoring: what a weight is: "softmax" over all E logits, "sigmoid" of each, or "softmax_chosen" over the
            chosen logits only (GPT-OSS).
        groups: parts of equal size that the experts form in order, of which each token may use the
            `kept_groups` best (DeepSeek-V2); 1 for no such limit.
        group_score: what a group is worth: its best expert ("max", DeepSeek-V2) or the sum of its best two
            ("top2", DeepSeek-V3), by scores with `bias`.
        normalize: divide a token's weights by their sum (plus 1e-20).
        scale: factor on the weights, after that.

    Returns:
        weights float32[T, top_k] and indices int64[T, top_k], best choice first, of equals the lower index;
        NaN counts as the highest score.

    Raises:
        ValueError: names or sizes that do not fit each other.
    """
    check(logits.shape[-1], top_k, scoring, groups, kept_groups, group_score)
    scores = SCORINGS[scoring](logits.float())
    choice = scores if bias is None else scores + bias.float()
    if groups > 1:
        parts = torch.unflatten(choice, -1, (groups, -1))
        best = parts.sort(-1, descending=True).values
        worth = best[..., 0] if group_score == "max" else best[..., 0] + best[..., 1]
        kept = _best(worth, kept_groups)
        outside = torch.ones_like(worth, dtype=torch.bool).scatter_(-1, kept, False)
        choice = parts.masked_fill(outside[..., None], float("-inf")).flatten(-2)
    indices = _best(choice, top_k)
    weights = scores.gather(-1, indices)
    if scoring == "softmax_chosen":
        weights = weights.softmax(-1)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (weights if scale == 1.0 else weights * scale), indices


def _best(values: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` highest of the last dimension in order; `topk` promises no order of equals."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count].contiguous()


def check(experts: int, top_k: int, scoring: str, groups: int, kept_groups: int, group_score: str) -> None:
    """Raises ValueError, saying what is wrong, for attributes that do not fit each other."""
    if scoring not in SCORINGS:
        raise ValueError(f"kt.router: unknown scoring {scoring!r}; one of {', '.join(SCORINGS)}")
    if group_score not in GROUP_SCORES:
        raise ValueError(f"kt.router: unknown group_score {group_score!r}; one of {', '.join(GROUP_SCORES)}")
    if groups < 1 or experts % groups or not 1 <= kept_groups <= groups:
        raise ValueError(f"kt.router: cannot keep {kept_groups} of {groups} groups of {experts} experts")
    reachable = experts // groups * kept_groups
    if not 1 <= top_k <= reachable:
        raise ValueError(f"kt.router: cannot choose {top_k} of {reachable} experts")
    if groups > 1 and group_score == "top2" and experts // groups < 2:
        raise ValueError("kt.router: groups of one expert have no two best")


def fake(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    top_k: int,
    scoring: str = "softmax",
    groups: int = 1,
    kept_groups: int = 1,
    group_score: str = "max",
    normalize: bool = False,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes of `reference`; refuses the same attributes."""
    check(logits.shape[-1], top_k, scoring, groups, kept_groups, group_score)
    shape = (*logits.shape[:-1], top_k)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int64)


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """The logits once in; a few operations for each of them."""
    logits, top_k = arguments["logits"], int(arguments["top_k"])
    tokens = int(logits.numel()) // int(logits.shape[-1])
    return Cost(6 * int(logits.numel()), nbytes(logits) + nbytes(arguments["bias"]), tokens * top_k * (4 + 8))


SPEC = define(
    "router(Tensor logits, Tensor? bias=None, *, int top_k, str scoring='softmax', int groups=1,"
    " int kept_groups=1, str group_score='max', bool normalize=False, float scale=1.0)"
    " -> (Tensor weights, Tensor indices)",
    reference=reference,
    fake=fake,
    cost=cost,
    outputs=("weights", "indices"),
    rowwise=True,
)

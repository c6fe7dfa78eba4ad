"""cpu.router: which experts each token goes to, and with what weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends.cpu.library import OperandError, arguments, define, insert, refuse, vector
from ktc.backends.registry import Kernel, Weight, register

from ktc import _cpu
from ktc.dialect.router import GROUP_SCORES, SCORINGS

_SCORINGS = tuple(SCORINGS)
_ATTRIBUTES = ("top_k", "scoring", "groups", "kept_groups", "group_score", "normalize", "scale")


def router(
    logits: torch.Tensor, bias: torch.Tensor | None, top_k: int, scoring: str, groups: int, kept_groups: int,
    group_score: str, normalize: bool, scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """See `kt.router`; logits float32[T, E] -> float32[T, top_k], int64[T, top_k].

    Raises:
        OperandError: dtypes, shapes or attributes that do not fit.
    """
    if logits.dtype is not torch.float32 or logits.dim() != 2:
        raise refuse("router", "logits", logits, "float32[T, E]")
    if scoring not in _SCORINGS or group_score not in GROUP_SCORES:
        raise OperandError(f"kt_cpu.router: unknown scoring {scoring!r} or group_score {group_score!r}")
    tokens, experts = logits.shape
    if bias is not None:
        bias = vector("router", "bias", bias, experts)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    weights = logits.new_empty((tokens, max(top_k, 0)))
    indices = logits.new_empty((tokens, max(top_k, 0)), dtype=torch.int64)
    try:
        _cpu.router(
            logits.data_ptr(), logits.stride(0), 0 if bias is None else bias.data_ptr(), tokens, experts, top_k,
            _SCORINGS.index(scoring), groups, kept_groups, GROUP_SCORES.index(group_score), normalize, scale,
            weights.data_ptr(), indices.data_ptr(),
        )  # fmt: skip
    except ValueError as error:
        raise OperandError(f"kt_cpu.{error}") from error
    return weights, indices


def fake(
    logits: torch.Tensor, bias: torch.Tensor | None, top_k: int, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes of `router`."""
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int64)


OP = define(
    "router(Tensor logits, Tensor? bias, int top_k, str scoring, int groups, int kept_groups, str group_score,"
    " bool normalize, float scale) -> (Tensor, Tensor)",
    router,
    fake,
)


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.router -> kt_cpu.router."""
    bound = arguments(node)
    return insert(graph, node, OP, tuple(bound[name] for name in ("logits", "bias", *_ATTRIBUTES)))


register(Kernel(name="cpu.router", op="kt.router", hardware=frozenset({"cpu"}), lower=lower, rank=10))

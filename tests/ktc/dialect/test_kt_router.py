"""kt.router against the formulas of the papers, one token at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

KT = torch.ops.kt


def _by_hand(
    logits: list[float], bias: list[float], options: dict[str, Any]
) -> tuple[list[int], list[float]]:
    """(chosen experts best first, their weights) of one token, in Python's own floats."""
    count, top_k, scoring = len(logits), options["top_k"], options.get("scoring", "softmax")
    if scoring == "sigmoid":
        scores = [1 / (1 + math.exp(-z)) for z in logits]
    else:
        total = sum(math.exp(z) for z in logits)
        scores = [math.exp(z) / total for z in logits] if scoring == "softmax" else list(logits)
    choice = [s + b for s, b in zip(scores, bias, strict=True)]
    groups, kept = options.get("groups", 1), options.get("kept_groups", 1)
    size = count // groups
    worth = []
    for group in range(groups):
        best = sorted(choice[group * size : (group + 1) * size], reverse=True)
        worth.append(best[0] if options.get("group_score", "max") == "max" else best[0] + best[1])
    allowed = sorted(range(groups), key=lambda g: (-worth[g], g))[:kept] if groups > 1 else [0]
    experts = [e for e in range(count) if e // size in allowed]
    chosen = sorted(experts, key=lambda e: (-choice[e], e))[:top_k]
    weights = [scores[e] for e in chosen]
    if scoring == "softmax_chosen":
        total = sum(math.exp(z) for z in weights)
        weights = [math.exp(z) / total for z in weights]
    if options.get("normalize"):
        weights = [w / (sum(weights) + 1e-20) for w in weights]
    return chosen, [w * options.get("scale", 1.0) for w in weights]


OPTIONS: dict[str, dict[str, Any]] = {
    "mixtral": {"top_k": 2, "normalize": True},
    "qwen": {"top_k": 4},
    "gpt_oss": {"top_k": 4, "scoring": "softmax_chosen"},
    "deepseek_v2": {"top_k": 3, "groups": 4, "kept_groups": 2, "scale": 16.0},
    "deepseek_v3": {
        "top_k": 4,
        "scoring": "sigmoid",
        "groups": 4,
        "kept_groups": 2,
        "group_score": "top2",
        "normalize": True,
        "scale": 2.5,
    },
    "one expert": {"top_k": 1, "scoring": "sigmoid"},
    "all experts": {"top_k": 16, "normalize": True},
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_router_follows_the_formulas(name: str, biased: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(40, 16, generator=generator)
    bias = 0.5 * torch.randn(16, generator=generator)
    weights, indices = KT.router.default(logits, bias if biased else None, **OPTIONS[name])
    added = bias.tolist() if biased else [0.0] * 16
    for token in range(40):
        chosen, expected = _by_hand(logits[token].tolist(), added, OPTIONS[name])
        assert indices[token].tolist() == chosen
        torch.testing.assert_close(weights[token], torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_of_equal_scores_the_lower_index_wins() -> None:
    logits = torch.zeros(3, 8)
    options = {"top_k": 3, "groups": 4, "kept_groups": 2}
    _, indices = KT.router.default(logits, None, **options)
    assert indices.tolist() == [[0, 1, 2]] * 3
    logits[:, 6] = 1.0
    _, indices = KT.router.default(logits, None, **options)
    assert indices.tolist() == [[6, 0, 1]] * 3


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights, indices = KT.router.default(logits, None, top_k=2)
    expected, places = KT.router.default(logits.float(), None, top_k=2)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert torch.equal(indices, places)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 9}, "cannot choose 9 of 8 experts"),
        ({"top_k": 0}, "cannot choose 0 of 8 experts"),
        ({"top_k": 2, "scoring": "tanh"}, "unknown scoring 'tanh'"),
        ({"top_k": 2, "group_score": "mean"}, "unknown group_score 'mean'"),
        ({"top_k": 2, "groups": 3}, "cannot keep 1 of 3 groups of 8 experts"),
        ({"top_k": 2, "groups": 4, "kept_groups": 5}, "cannot keep 5 of 4 groups"),
        ({"top_k": 3, "groups": 4, "kept_groups": 1}, "cannot choose 3 of 2 experts"),
        ({"top_k": 2, "groups": 8, "kept_groups": 2, "group_score": "top2"}, "groups of one expert"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KT.router.default(torch.zeros(2, 8), None, **options)

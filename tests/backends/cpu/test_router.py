"""cpu.router against kt.router: every scoring, groups, biases, odd sizes, equal and extreme scores, refusals."""

from __future__ import annotations

from typing import Any

import ktc.backends.cpu.router
import pytest
import torch
import torch.fx as fx
from ktc.backends.cpu import router as module
from ktc.backends.cpu.library import OperandError

import ktc.dialect  # noqa: F401  registers kt.router
from ktc import _cpu

DEFAULTS: dict[str, Any] = {
    "scoring": "softmax",
    "groups": 1,
    "kept_groups": 1,
    "group_score": "max",
    "normalize": False,
    "scale": 1.0,
}
OPTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "mixtral": (8, {"top_k": 2, "normalize": True}),
    "qwen3_moe": (128, {"top_k": 8, "normalize": True}),
    "gpt_oss": (32, {"top_k": 4, "scoring": "softmax_chosen"}),
    "deepseek_v2": (160, {"top_k": 6, "groups": 8, "kept_groups": 3, "scale": 16.0}),
    "deepseek_v3": (
        256,
        {
            "top_k": 8,
            "scoring": "sigmoid",
            "groups": 8,
            "kept_groups": 4,
            "group_score": "top2",
            "normalize": True,
            "scale": 2.5,
        },
    ),
    "one expert": (1, {"top_k": 1, "scoring": "sigmoid"}),
    "odd": (61, {"top_k": 61, "normalize": True}),
    "pairs": (18, {"top_k": 3, "groups": 9, "kept_groups": 4, "group_score": "top2"}),
}


def both(logits: torch.Tensor, bias: torch.Tensor | None, options: dict[str, Any]) -> None:
    """The kernel's choice is the reference's, its weights equal to a few float32 steps."""
    expected, places = torch.ops.kt.router(logits, bias, **options)
    attributes = {**DEFAULTS, **options}
    weights, indices = torch.ops.kt_cpu.router(logits, bias, **attributes)
    assert torch.equal(indices, places)
    torch.testing.assert_close(weights, expected, rtol=2e-6, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("tokens", [0, 1, 2, 9, 17, 257])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_scoring(name: str, biased: bool, tokens: int) -> None:
    experts, options = OPTIONS[name]
    generator = torch.Generator().manual_seed(tokens)
    logits = 2 * torch.randn(tokens, experts, generator=generator)
    bias = 0.3 * torch.randn(experts, generator=generator)
    both(logits, bias if biased else None, options)


def test_rows_may_lie_apart() -> None:
    logits = torch.randn(7, 40)[:, 3:19]
    both(logits, None, {"top_k": 3})
    both(torch.randn(16, 7).T, torch.randn(16).double(), {"top_k": 3, "scoring": "sigmoid"})


@pytest.mark.parametrize("name", OPTIONS)
def test_of_equal_scores_the_lower_index_wins(name: str) -> None:
    experts, options = OPTIONS[name]
    both(torch.zeros(3, experts), None, options)
    both(torch.randint(0, 3, (50, experts)).float(), None, options)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v2"])
def test_extreme_logits(name: str) -> None:
    experts, options = OPTIONS[name]
    logits = torch.randn(20, experts)
    logits[:10] *= 1e4
    logits[10:] += 3e38
    both(logits, None, options)


def test_what_is_wrong_shows_in_the_weights() -> None:
    logits = torch.randn(2, 8)
    logits[1, 3] = torch.nan
    attributes = {**DEFAULTS, "top_k": 2}
    weights, indices = torch.ops.kt_cpu.router(logits, None, **attributes)
    assert torch.isfinite(weights[0]).all() and torch.isnan(weights[1]).all()
    assert ((indices >= 0) & (indices < 8)).all()


def test_the_result_does_not_depend_on_threads(threads: int) -> None:
    experts, options = OPTIONS["deepseek_v3"]
    logits = torch.randn(300, experts, generator=torch.Generator().manual_seed(0))
    found = torch.ops.kt_cpu.router(logits, None, **{**DEFAULTS, **options})
    _cpu.set_threads(1)
    alone = torch.ops.kt_cpu.router(logits, None, **{**DEFAULTS, **options})
    assert torch.equal(found[0], alone[0]) and torch.equal(found[1], alone[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "cannot choose 0 of 8"),
        ({"top_k": -3}, "cannot choose -3 of 8"),
        ({"top_k": 9}, "cannot choose 9 of 8"),
        ({"scoring": "tanh"}, "unknown scoring 'tanh'"),
        ({"groups": 3}, "cannot keep 1 of 3 groups"),
        ({"groups": 0}, "cannot keep 1 of 0 groups"),
        ({"groups": 4, "kept_groups": 5}, "cannot keep 5 of 4 groups"),
        ({"groups": 8, "kept_groups": 4, "group_score": "top2"}, "groups of one expert"),
        ({"logits": torch.zeros(2, 8).half()}, "`logits` must be float32"),
        ({"bias": torch.zeros(7)}, "`bias` must be"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    arguments = {"logits": torch.zeros(2, 8), "bias": None, **DEFAULTS, "top_k": 2, **change}
    with pytest.raises(OperandError, match=message):
        torch.ops.kt_cpu.router(**arguments)


def test_lowering_takes_attributes_by_name() -> None:
    graph = fx.Graph()
    logits = graph.placeholder("logits")
    node = graph.call_function(torch.ops.kt.router.default, (logits,), {"top_k": 2, "scale": 1.5})
    node.meta["val"] = ()
    new = module.lower(graph, node, {}, {})
    assert new.target is module.OP
    assert new.args == (logits, None, 2, "softmax", 1, 1, "max", False, 1.5)

"""Ops of the dialect without a test file of their own: references against other formulas, fakes against references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from ktc.dialect import ops

KT = torch.ops.kt


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def _attention_arguments() -> tuple[Any, ...]:
    integers = {"dtype": torch.int32}
    return (
        *(_random(1, heads, 3, 8) for heads in (4, 2, 2)),
        torch.zeros(2, 2, 4, 8),
        torch.zeros(2, 2, 4, 8),
        torch.tensor([0, 3], **integers),
        torch.tensor([3], **integers),
        torch.tensor([[1]], **integers),
        torch.tensor([4, 5, 6]),
        0.5,
    )


def _latent_arguments() -> tuple[Any, ...]:
    descriptor = _attention_arguments()[5:]
    parts = (_random(1, 4, 3, 6), _random(1, 4, 3, 2), _random(1, 3, 5), _random(1, 1, 3, 2))
    weights = (_random(4, 5, 6), _random(4, 7, 5))
    return (*parts, *weights, torch.zeros(2, 1, 4, 5), torch.zeros(2, 1, 4, 2), *descriptor)


X, Y, W = _random(2, 3, 8), _random(2, 3, 8, seed=1), _random(8, seed=2)
COS, SIN = KT.rotary.default(torch.arange(3)[None], _random(4).abs())
IDS = torch.tensor([[1, 0, 4]])
CHOICE = torch.tensor([[0, 2], [1, 2], [3, 0]])

NAMED: dict[str, dict[str, Any]] = {
    "router": {"top_k": 3, "scoring": "sigmoid", "groups": 4, "kept_groups": 2, "group_score": "top2"}
}
SAMPLES: dict[str, tuple[Any, ...]] = {
    "add": (X, Y),
    "add_rms_norm": (X, Y, W, 1e-6, 1.0),
    "attention": _attention_arguments(),
    "concat": ([_random(3, 8), _random(5, 8)],),
    "deinterleave": (_random(3, 10),),
    "embedding": (IDS, _random(5, 8)),
    "expert_rows": (_random(3, 8, 10), True),
    "experts": (_random(3, 8), CHOICE, torch.rand(3, 2), _random(4, 12, 8), _random(4, 8, 6)),
    "gelu": (X, "tanh"),
    "gelu_mul": (X, Y),
    "layer_norm": (X, W, None, 1e-5),
    "linear": (X, _random(5, 8), _random(5)),
    "mla_attention": _latent_arguments(),
    "mla_expand": (_random(1, 4, 3, 6), _random(1, 4, 3, 2), _random(1, 3, 4 * 11), _random(1, 1, 3, 2)),
    "mla_key_weight": (_random(4 * 11, 5), 4, 6),
    "mla_value_weight": (_random(4 * 11, 5), 4, 6),
    "mul": (X, Y),
    "rms_norm": (X, W, 1e-6),
    "rope": (_random(1, 4, 3, 8), _random(1, 2, 3, 8), COS, SIN, True),
    "router": (_random(3, 16), _random(16)),
    "rotary": (torch.arange(3)[None], _random(4).abs(), 1.5),
    "silu": (X,),
    "silu_mul": (X, Y),
    "split": (X, [2, 5, 1]),
    "transfer": (X, "cpu"),
}


def test_every_op_has_a_sample() -> None:
    assert {f"kt.{name}" for name in SAMPLES} == set(ops())


@pytest.mark.parametrize("name", SAMPLES)
def test_fake_agrees_with_reference_in_shape_dtype_and_device(name: str) -> None:
    arguments, named = SAMPLES[name], NAMED.get(name, {})
    real = _listed(ops()[f"kt.{name}"].op(*arguments, **named))
    mode = FakeTensorMode()
    with mode:
        fake = _listed(ops()[f"kt.{name}"].op(*_faked(arguments, mode), **named))
    assert [(r.shape, r.dtype, r.device) for r in real] == [(f.shape, f.dtype, f.device) for f in fake]


@pytest.mark.parametrize("name", SAMPLES)
def test_schema_tells_the_truth_about_mutation_and_aliasing(name: str) -> None:
    op = ops()[f"kt.{name}"].op
    torch.library.opcheck(op, SAMPLES[name], NAMED.get(name, {}), test_utils=("test_schema",))


def _listed(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def _faked(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    return type(value)(_faked(item, mode) for item in value) if isinstance(value, (list, tuple)) else value


EQUAL: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]] = {
    "add": (lambda: KT.add.default(X, Y), lambda: X + Y),
    "mul": (lambda: KT.mul.default(X, Y), lambda: X * Y),
    "embedding": (lambda: KT.embedding.default(IDS, _random(5, 8)), lambda: _random(5, 8)[IDS]),
    "linear": (
        lambda: KT.linear.default(X, _random(5, 8), _random(5)),
        lambda: torch.einsum("btk,nk->btn", X, _random(5, 8)) + _random(5),
    ),
    "linear with a weight of another dtype": (
        lambda: KT.linear.default(X, _random(5, 8).half(), None),
        lambda: X @ _random(5, 8).half().float().T,
    ),
    "rms_norm": (lambda: KT.rms_norm.default(X, W, 1e-6), lambda: F.rms_norm(X, (8,), W, 1e-6)),
    "rms_norm with offset": (
        lambda: KT.rms_norm.default(X, W, 1e-6, 1.0),
        lambda: F.rms_norm(X, (8,), 1 + W, 1e-6),
    ),
    "layer_norm": (
        lambda: KT.layer_norm.default(X, W, Y[0, 0], 1e-5),
        lambda: (
            (X - X.mean(-1, True)) / (X.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * W + Y[0, 0]
        ),
    ),
    "silu": (lambda: KT.silu.default(X), lambda: X / (1 + torch.exp(-X))),
    "gelu": (lambda: KT.gelu.default(X), lambda: X / 2 * (1 + torch.erf(X / 2**0.5))),
    "gelu by tanh": (
        lambda: KT.gelu.default(X, "tanh"),
        lambda: X / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (X + 0.044715 * X**3))),
    ),
    "silu_mul": (lambda: KT.silu_mul.default(X, Y), lambda: X * torch.sigmoid(X) * Y),
    "gelu_mul": (lambda: KT.gelu_mul.default(X, Y, "tanh"), lambda: KT.gelu.default(X, "tanh") * Y),
    "add_rms_norm, norm": (
        lambda: KT.add_rms_norm.default(X, Y, W, 1e-6)[0],
        lambda: F.rms_norm(X + Y, (8,), W, 1e-6),
    ),
    "add_rms_norm, sum": (lambda: KT.add_rms_norm.default(X, Y, W, 1e-6)[1], lambda: X + Y),
    "split": (
        lambda: torch.cat(KT.split.default(X, [2, 5, 1])[::-1], -1),
        lambda: torch.cat((X[..., 7:], X[..., 2:7], X[..., :2]), -1),
    ),
    "concat": (
        lambda: KT.concat.default([_random(3, 8), _random(5, 8)]),
        lambda: torch.vstack([_random(3, 8), _random(5, 8)]),
    ),
    "transfer": (lambda: KT.transfer.default(X, "cpu"), lambda: X),
}


@pytest.mark.parametrize("name", EQUAL)
def test_reference_equals_an_independent_formulation(name: str) -> None:
    found, expected = EQUAL[name]
    torch.testing.assert_close(found(), expected(), rtol=1e-6, atol=1e-6)


def test_rms_norm_computes_half_precision_in_float32() -> None:
    x = (_random(4, 64) * 300).half()
    found = KT.rms_norm.default(x, torch.ones(64).half(), 1e-6)
    torch.testing.assert_close(found, F.rms_norm(x.float(), (64,), None, 1e-6).half())


def test_split_returns_views() -> None:
    x = torch.zeros(2, 6)
    KT.split.default(x, [2, 4])[1].fill_(1.0)
    assert x.tolist() == [[0, 0, 1, 1, 1, 1]] * 2


def test_transfer_copies() -> None:
    assert KT.transfer.default(X, "cpu").data_ptr() != X.data_ptr()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [8, 4])
def test_rope_is_multiplication_by_unit_complex_numbers(interleaved: bool, width: int) -> None:
    positions, frequencies = torch.tensor([[0, 3, 70]]), 0.5 ** torch.arange(width // 2)
    q, k = _random(1, 4, 3, 8), _random(1, 2, 3, 8)
    cos, sin = KT.rotary.default(positions, frequencies)
    turn = torch.polar(torch.ones(3, width // 2), positions[0, :, None] * frequencies)
    for x, found in zip((q, k), KT.rope.default(q, k, cos, sin, interleaved), strict=True):
        half = width // 2
        pairs = (x[..., 0:width:2], x[..., 1:width:2]) if interleaved else (x[..., :half], x[..., half:width])
        turned = torch.complex(*pairs) * turn
        expected = x.clone()
        if interleaved:
            expected[..., 0:width:2], expected[..., 1:width:2] = turned.real, turned.imag
        else:
            expected[..., :half], expected[..., half:width] = turned.real, turned.imag
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rotary_scales_both_tables() -> None:
    cos, sin = KT.rotary.default(torch.tensor([[2, 5]]), torch.tensor([1.0, 0.1]), 1.5)
    angles = torch.tensor([[[2.0, 0.2, 2.0, 0.2], [5.0, 0.5, 5.0, 0.5]]])
    torch.testing.assert_close(cos, 1.5 * torch.cos(angles))
    torch.testing.assert_close(sin, 1.5 * torch.sin(angles))


def _dense_experts(
    x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, mix: torch.Tensor, act: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """Every expert on every token, mixed by a full [T, E] matrix of weights."""
    hidden = torch.einsum("tk,enk->ten", x, up)
    return torch.einsum("ten,ekn,te->tk", act(hidden), down, mix)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_experts_equal_the_dense_mixture(activation: str) -> None:
    x, up, down, weights = _random(3, 8), _random(4, 12, 8), _random(4, 8, 6), torch.rand(3, 2)
    mix = torch.zeros(3, 4).scatter_(1, CHOICE, weights)
    gate: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"),
    }
    expected = _dense_experts(x, up, down, mix, lambda h: gate[activation](h[..., :6]) * h[..., 6:])
    found = KT.experts.default(x, CHOICE, weights, up, down, None, None, activation)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_experts_of_gpt_oss_clamp() -> None:
    x, up, down, bias = 9 * _random(3, 8), _random(4, 12, 8), _random(4, 8, 6), _random(4, 12)
    weights = torch.rand(3, 2)
    mix = torch.zeros(3, 4).scatter_(1, CHOICE, weights)

    def act(hidden: torch.Tensor) -> torch.Tensor:
        gate, up_part = (hidden + bias)[..., :6], (hidden + bias)[..., 6:]
        gate, up_part = torch.minimum(gate, torch.tensor(7.0)), up_part.clip(-7, 7)
        return (1 + up_part) * gate / (1 + torch.exp(-1.702 * gate))

    found = KT.experts.default(x, CHOICE, weights, up, down, bias, torch.zeros(4, 8), "gpt_oss")
    torch.testing.assert_close(found, _dense_experts(x, up, down, mix, act), rtol=1e-4, atol=1e-3)


def test_experts_refuse_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="unknown activation 'relu'"):
        KT.experts.default(*SAMPLES["experts"], None, None, "relu")

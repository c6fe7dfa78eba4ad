"""The registry of ops and the costs of graph nodes."""

from __future__ import annotations

import pytest
import torch
import torch.fx as fx

from ktc.dialect import Cost, node_cost, ops, spec_of
from ktc.dialect.spec import define


def test_records_follow_the_schemas() -> None:
    for name, spec in ops().items():
        schema = spec.op._schema
        assert schema.name == f"kt::{name.removeprefix('kt.')}"
        assert spec.operands == tuple(argument.name for argument in schema.arguments)
        assert set(spec.weights) <= set(spec.operands)
        assert len(spec.outputs) == len(schema.returns)
        mutated = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
        assert spec.effects.mutates_kv == mutated == (spec.caches is not None)


def test_only_symmetric_ops_are_commutative() -> None:
    assert {name for name, spec in ops().items() if spec.commutative} == {"kt.add", "kt.mul"}


def test_spec_of_knows_dialect_ops_only() -> None:
    assert spec_of(torch.ops.kt.linear.default) is ops()["kt.linear"]
    assert spec_of(torch.ops.aten.add.Tensor) is None
    assert spec_of("view") is None


def test_an_op_is_defined_once() -> None:
    spec = ops()["kt.add"]
    with pytest.raises(ValueError, match=r"kt\.add is defined twice"):
        define(spec.schema, reference=spec.reference, fake=spec.fake, cost=spec.cost)


def _cost(name: str, *values: object, context: int = 0) -> Cost:
    """Cost of a node that calls op `name` on tensors of the given meta values."""
    graph = fx.Graph()
    arguments = []
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            node = graph.placeholder(f"x{index}")
            node.meta["val"] = value
            arguments.append(node)
        else:
            arguments.append(value)
    found = node_cost(graph.call_function(ops()[name].op, tuple(arguments)), {}, context)
    assert found is not None
    return found


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_linear_reads_its_weight_once() -> None:
    one = _cost("kt.linear", _meta(1, 1, 8), _meta(16, 8, dtype=torch.bfloat16))
    assert one == Cost(2 * 8 * 16, 8 * 4 + 8 * 16 * 2, 16 * 4, weight_elements=128)
    ten = _cost("kt.linear", _meta(1, 10, 8), _meta(16, 8, dtype=torch.bfloat16))
    assert ten == Cost(20 * 8 * 16, 80 * 4 + 8 * 16 * 2, 160 * 4, weight_elements=128)


def test_embedding_reads_only_its_rows() -> None:
    found = _cost("kt.embedding", _meta(1, 3, dtype=torch.int64), _meta(1000, 8))
    assert found == Cost(0, 3 * 8 + 3 * 8 * 4, 3 * 8 * 4, weight_elements=24)


def test_experts_read_what_their_tokens_touch() -> None:
    def run(tokens: int) -> Cost:
        shapes = (_meta(tokens, 8), _meta(tokens, 2, dtype=torch.int64), _meta(tokens, 2))
        return _cost("kt.experts", *shapes, _meta(4, 12, 8), _meta(4, 8, 6))

    each = 12 * 8 + 8 * 6
    assert run(1).weight_elements == 2 * each
    assert run(2).weight_elements == 3 * each  # 4 * (1 - (1 - 2/4)**2)
    assert run(100).weight_elements == 4 * each
    assert run(100).flops == 100 * 2 * 2 * each


def test_attention_reads_context_or_window() -> None:
    def run(tokens: int, context: int, window: int) -> Cost:
        integers = (_meta(2, dtype=torch.int32), _meta(1, dtype=torch.int32), _meta(1, 4, dtype=torch.int32))
        q, k = _meta(1, 4, tokens, 8), _meta(1, 2, tokens, 8)
        caches = (_meta(9, 2, 4, 8, dtype=torch.float16), _meta(9, 2, 4, 8, dtype=torch.float16))
        slots = _meta(tokens, dtype=torch.int64)
        return _cost("kt.attention", q, k, k, *caches, *integers, slots, 1.0, window, context=context)

    entry = 2 * (8 + 8) * 2
    own = (4 * 8 + 2 * 2 * 8) * 4
    assert run(1, 100, 0).read_bytes == own + 100 * entry
    assert run(1, 100, 16).read_bytes == own + 16 * entry
    assert run(1, 100, 0).flops == 2 * 4 * 100 * 16
    assert run(1, 100, 0).written_bytes == 4 * 8 * 4 + entry


def test_latent_attention_reads_its_weights_and_the_latents() -> None:
    integers = (_meta(2, dtype=torch.int32), _meta(1, dtype=torch.int32), _meta(1, 4, dtype=torch.int32))
    parts = (_meta(1, 4, 1, 6), _meta(1, 4, 1, 2), _meta(1, 1, 5), _meta(1, 1, 1, 2))
    caches = (_meta(9, 1, 4, 5, dtype=torch.float16), _meta(9, 1, 4, 2, dtype=torch.float16))
    slots = _meta(1, dtype=torch.int64)
    weights = (_meta(4, 5, 6), _meta(4, 7, 5))
    found = _cost("kt.mla_attention", *parts, *weights, *caches, *integers, slots, 1.0, context=100)
    elements, entry = 4 * 5 * 6 + 4 * 7 * 5, (5 + 2) * 2
    assert found.weight_elements == elements
    assert found.read_bytes == (4 * 6 + 4 * 2 + 5 + 2 + elements) * 4 + 100 * entry
    assert found.written_bytes == 4 * 7 * 4 + entry
    assert found.flops == 2 * elements + 2 * 4 * 100 * (2 * 5 + 2)


def test_an_op_says_which_caches_it_writes() -> None:
    own = {"k": _meta(1, 2, 3, 8), "v": _meta(1, 2, 3, 6)}
    latent = {"latent": _meta(1, 3, 512), "k_rope": _meta(1, 1, 3, 64)}
    writers = {name: spec.caches for name, spec in ops().items() if spec.caches is not None}
    assert writers["kt.attention"](own) == (2, 8, 6)
    assert writers["kt.mla_attention"](latent) == (1, 512, 64)
    assert len(writers) == 2


def test_attention_says_what_a_token_and_a_position_cost() -> None:
    known = {name: spec.products for name, spec in ops().items() if spec.products is not None}
    assert set(known) == {"kt.attention", "kt.mla_attention"}
    assert known["kt.attention"]({"q": _meta(1, 4, 3, 8), "v": _meta(1, 2, 3, 6)}) == 4 * (8 + 6)
    # DeepSeek-V3 expands keys and values of 192 and 128; 20 latent elements would be fewer absorbed.
    full = {"q_nope": _meta(1, 128, 3, 128), "w_value": _meta(128, 128, 512), "k_rope": _meta(1, 1, 3, 64)}
    assert known["kt.mla_attention"](full | {"latent": _meta(1, 3, 512)}) == 128 * (192 + 128)
    assert known["kt.mla_attention"](full | {"latent": _meta(1, 3, 20)}) == 128 * (20 + 64 + 20)


def test_views_and_other_ops_cost_nothing_here() -> None:
    assert _cost("kt.split", _meta(2, 6), [2, 4]) == Cost()
    graph = fx.Graph()
    assert node_cost(graph.call_function(torch.relu, (graph.placeholder("x"),)), {}) is None


def test_costs_add() -> None:
    assert Cost(1, 2, 3, 4) + Cost(10, 20, 30, 40) == Cost(11, 22, 33, 44)

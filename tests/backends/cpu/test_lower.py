"""Registrations and lowering: kt nodes become kt_cpu nodes that compute the same."""

from __future__ import annotations

import pytest
import torch
import torch.fx as fx
from ktc.backends.cpu import packed
from ktc.backends.cpu.library import direct
from ktc.backends.cpu.packed import PACKED
from ktc.backends.registry import Kernel, Weight, for_op, kernels
from support.packed_weights import dense, make_blocks, nmse, pack
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import ktc.dialect  # noqa: F401  registers the dialect

NAMES = (
    "add", "add_rms_norm", "attention", "embedding", "embedding_file", "gelu", "gelu_mul", "layer_norm",
    "linear", "mul", "rms_norm", "rope", "silu", "silu_mul",
)  # fmt: skip


def test_all_kernels_are_registered() -> None:
    known = kernels()
    for name in NAMES:
        kernel = known[f"cpu.{name}"]
        assert kernel.op == f"kt.{name.removesuffix('_file')}" and kernel.hardware == {"cpu"}
    assert for_op("kt.linear")[0].name == "cpu.linear"
    assert known["cpu.linear"].formats == known["cpu.embedding"].formats == frozenset(PACKED)
    assert known["cpu.linear"].layout is known["cpu.embedding"].layout is packed.LAYOUT


def test_the_function_behind_an_op_computes_the_same() -> None:
    x, y = torch.randn(3, 20), torch.randn(3, 20)
    run = direct(torch.ops.kt_cpu.silu_mul.default)
    assert run is not None and torch.equal(run(x, y), torch.ops.kt_cpu.silu_mul(x, y))
    assert direct(torch.ops.kt.silu_mul.default) is None and direct("kt_cpu.silu_mul") is None


def test_schemas_equal_the_dialect_for_kernels_without_packed_weights() -> None:
    for name in set(NAMES) - {"linear", "embedding", "embedding_file"}:
        ours, meaning = (
            getattr(torch.ops.kt_cpu, name).default._schema,
            getattr(torch.ops.kt, name).default._schema,
        )
        assert [(a.name, str(a.type)) for a in ours.arguments] == [
            (a.name, str(a.type)) for a in meaning.arguments
        ]


def graph_of(op: torch._ops.OpOverload, shapes: dict[str, tuple[int, ...]]) -> tuple[fx.Graph, fx.Node]:
    """A graph of one call: placeholders for x and ids, get_attr for the rest."""
    graph, args = fx.Graph(), []
    for name, shape in shapes.items():
        node = graph.placeholder(name) if name in ("x", "ids") else graph.get_attr(name)
        node.meta["val"] = torch.empty(shape, device="meta")
        args.append(node)
    node = graph.call_function(op, tuple(args))
    node.meta["site"] = "model.layer"
    graph.output(node)
    return graph, node


def lowered(
    kernel: Kernel, graph: fx.Graph, node: fx.Node, weight: Weight, options: dict[str, object]
) -> fx.Node:
    new = kernel.lower(graph, node, {"weight": weight}, options)
    assert new.meta["site"] == "model.layer" and new.next is node
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    graph.lint()
    return new


@pytest.mark.parametrize("options", [{}, {"threads": 1}])
def test_linear_lowers_to_a_call_that_computes_it(options: dict[str, object]) -> None:
    rows, columns = 24, 256
    blocks = make_blocks("q4_k", rows, columns)
    graph, node = graph_of(
        torch.ops.kt.linear.default, {"x": (1, 5, columns), "weight": (rows, columns), "bias": (rows,)}
    )
    kernel = kernels()["cpu.linear"]
    assert kernel.supports(node) is None
    new = lowered(kernel, graph, node, Weight("weight", "q4_k", (rows, columns)), options)
    assert new.target is torch.ops.kt_cpu.linear.default
    root = torch.nn.Module()
    root.weight, root.bias = pack("q4_k", blocks, rows, columns), torch.randn(rows)
    x = torch.randn(1, 5, columns)
    wanted = x.double() @ dense("q4_k", blocks, rows, columns).double().T + root.bias
    assert nmse(fx.GraphModule(root, graph)(x), wanted) <= 1e-4


@pytest.mark.parametrize("name", ["embedding", "embedding_file"])
def test_embedding_lowers_in_either_layout(name: str) -> None:
    blocks = make_blocks("q6_k", 10, 256)
    kernel, weight = kernels()[f"cpu.{name}"], Weight("weight", "q6_k", (10, 256))
    graph, node = graph_of(torch.ops.kt.embedding.default, {"ids": (1, 3), "weight": (10, 256)})
    assert kernel.supports(node) is None and kernel.layout is not None
    lowered(kernel, graph, node, weight, {})
    memory = torch.empty(kernel.layout.packed_bytes(weight) + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    root = torch.nn.Module()
    root.weight = memory[start : start + kernel.layout.packed_bytes(weight)]
    kernel.layout.pack(blocks, weight, root.weight)
    ids = torch.tensor([[9, 0, 4]])
    assert torch.equal(fx.GraphModule(root, graph)(ids), dense("q6_k", blocks, 10, 256)[ids])


def test_reasons_for_nodes_that_do_not_fit() -> None:
    kernel = kernels()["cpu.linear"]
    _, node = graph_of(torch.ops.kt.linear.default, {"x": (1, 5, 40), "weight": (8, 40)})
    assert "40 columns" in (kernel.supports(node) or "")
    _, node = graph_of(torch.ops.kt.linear.default, {"x": (1, 5, 64), "weight": (8, 64)})
    node.args = (node.args[0], node.args[0])
    assert "not a parameter" in (kernel.supports(node) or "")


def test_symbolic_tokens() -> None:
    env = ShapeEnv()
    with FakeTensorMode(shape_env=env) as mode:
        x = mode.from_tensor(torch.randn(1, 7, 64), static_shapes=False)
        weight = torch.empty(64, dtype=torch.uint8)
        y = torch.ops.kt_cpu.linear(x, weight, None, "q8_0", 100, 64)
        assert y.shape[1] == x.shape[1] and y.shape[2] == 100
        norm, total = torch.ops.kt_cpu.add_rms_norm(x, x, x[0, 0], 1e-5)
        assert norm.shape == total.shape == x.shape
        ids = mode.from_tensor(torch.zeros(1, 7, dtype=torch.int64), static_shapes=False)
        assert torch.ops.kt_cpu.embedding(ids, weight, "q8_0", 100, 64).shape[2] == 64
    assert not env.guards

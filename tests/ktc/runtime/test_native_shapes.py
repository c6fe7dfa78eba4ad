"""Shapes of a graph as affine functions of a step's sizes, and which values are views."""

from __future__ import annotations

import torch
import torch.fx as fx

from ktc.runtime.native_shapes import STEP_INPUTS, evaluate, infer, step_sizes

SIZES = step_sizes(17, 4, 6, 3)


def inputs(graph: fx.Graph) -> dict[str, fx.Node]:
    return {name: graph.placeholder(name) for name in STEP_INPUTS}


def numbers(values: tuple[tuple[int, ...], ...]) -> list[int]:
    return [evaluate(value, SIZES) for value in values]


def test_views_share_a_storage_and_copies_do_not() -> None:
    graph = fx.Graph()
    given = inputs(graph)
    weight = graph.get_attr("weight")
    rows = graph.call_function(torch.nn.functional.embedding, (given["input_ids"], weight))
    heads = graph.call_method("view", (rows, (1, -1, 4, 2)))
    turned = graph.call_method("transpose", (heads, 1, 2))
    flat = graph.call_method("reshape", (turned, 1, 4, -1))
    half = graph.call_function(torch.narrow, (rows, 2, 3, 5))
    graph.output((flat, half))
    shapes = infer(graph, {"weight": torch.zeros(10, 8)})
    leaf = {node: shapes.leaves[node][0] for node in (rows, heads, turned, flat, half)}
    assert leaf[rows].storage == leaf[heads].storage == leaf[turned].storage == leaf[half].storage
    assert leaf[flat].storage != leaf[rows].storage
    assert shapes.makers[leaf[turned].storage] is rows and shapes.makers[leaf[flat].storage] is flat
    assert numbers(leaf[turned].shape) == [1, 4, 17, 2] and numbers(leaf[turned].strides)[1:] == [2, 8, 1]
    assert numbers(leaf[flat].shape) == [1, 4, 34] and numbers(leaf[flat].strides)[1] == 34
    assert evaluate(leaf[half].offset, SIZES) == 3 and numbers(leaf[half].shape) == [1, 17, 5]
    assert evaluate(shapes.storage_bytes[leaf[rows].storage], SIZES) == 17 * 8 * 4


def test_every_size_of_a_step_counts_and_products_of_the_table_too() -> None:
    graph = fx.Graph()
    given = inputs(graph)
    joined = graph.call_function(torch.cat, ((given["context_lens"], given["seq_starts"]),))
    graph.output((joined, given["block_tables"], given["logits_index"]))
    shapes = infer(graph, {})
    assert numbers(shapes.leaves[joined][0].shape) == [4 + 5]
    table = shapes.leaves[given["block_tables"]][0]
    assert numbers(table.shape) == [4, 6] and numbers(table.strides) == [6, 1]
    assert evaluate(shapes.storage_bytes[table.storage], SIZES) == 4 * 6 * 4
    assert numbers(shapes.leaves[given["logits_index"]][0].shape) == [3]


def test_what_is_not_affine_or_depends_on_data_is_left_out() -> None:
    graph = fx.Graph()
    given = inputs(graph)
    square = graph.call_function(torch.outer, (given["slots"], given["slots"]))
    chosen = graph.call_function(torch.nonzero, (given["slots"],))
    after = graph.call_method("add", (chosen, 1))
    size = graph.call_function(torch.ops.aten.sym_size.int, (given["slots"], 0))
    parts = graph.call_function(torch.unbind, (given["positions"],))
    graph.output((square, after, size, parts))
    shapes = infer(graph, {})
    assert not {square, chosen, after, size} & shapes.leaves.keys()
    assert shapes.numbers == {size} and shapes.tuples == {parts}

"""A placed graph as a function: flat attributes, shared tensors, modules, names that are no identifiers."""

from __future__ import annotations

import pytest
import torch
import torch.fx as fx

from ktc.runtime.program import Program


def affine() -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    scale = graph.get_attr("model.layers.0.{q+k}.weight")
    again = graph.get_attr("model.layers.0.{q+k}.weight")
    shift = graph.get_attr("model.shift")
    y = graph.call_function(torch.add, (graph.call_function(torch.mul, (x, scale)), shift))
    graph.output((y, again))
    return graph


def test_runs_on_its_tensors() -> None:
    scale, shift = torch.tensor([2.0, 3.0]), torch.tensor(1.0)
    program = Program(affine(), {"model.layers.0.{q+k}.weight": scale, "model.shift": shift, "unused": shift})
    y, same = program(torch.tensor([1.0, 1.0]))
    assert y.tolist() == [3.0, 4.0] and same is scale
    assert program.inputs == ("x",)


def test_tensors_are_shared_not_copied() -> None:
    """A cache that one step writes is the one that the next reads, and that other phases read."""
    graph = fx.Graph()
    x, cache = graph.placeholder("x"), graph.get_attr("kv.0.key")
    graph.call_method("add_", (cache, x))
    graph.output(cache)
    cache_tensor = torch.zeros(2)
    first, second = (Program(graph, {"kv.0.key": cache_tensor}) for _ in range(2))
    first(torch.ones(2))
    assert second(torch.ones(2)).tolist() == [2.0, 2.0] == cache_tensor.tolist()


def test_two_programs_of_one_graph_keep_apart() -> None:
    tensors = {"model.shift": torch.tensor(0.0)}
    one = Program(affine(), {**tensors, "model.layers.0.{q+k}.weight": torch.tensor(1.0)})
    two = Program(affine(), {**tensors, "model.layers.0.{q+k}.weight": torch.tensor(2.0)})
    x = torch.tensor(5.0)
    assert (float(one(x)[0]), float(two(x)[0]), float(one(x)[0])) == (5.0, 10.0, 5.0)


def test_modules_that_stayed() -> None:
    graph = fx.Graph()
    graph.output(graph.call_module("pooler.dense", (graph.placeholder("x"),)))
    dense = torch.nn.Linear(3, 2)
    x = torch.randn(4, 3)
    assert torch.equal(Program(graph, {"pooler.dense": dense})(x), dense(x))


def test_missing_tensor() -> None:
    with pytest.raises(KeyError, match="shift"):
        Program(affine(), {"model.layers.0.{q+k}.weight": torch.zeros(1)})

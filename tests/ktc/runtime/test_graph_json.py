"""Graphs as JSON: what was written is read back and runs the same; whatever could reach outside tensors is refused."""

from __future__ import annotations

import copy
import json
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx as fx

from ktc.errors import ArtifactError
from ktc.runtime.graph_json import from_json, to_json
from ktc.runtime.program import Program


def small_graph() -> fx.Graph:
    """y = relu(x[:, 1:, ...] @ w), with a slice, an ellipsis, a tuple, a list, a dtype and a device."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    w = graph.get_attr("a.weight")
    part = graph.call_function(operator.getitem, (x, (slice(None), slice(1, None), Ellipsis)))
    y = graph.call_function(torch.ops.aten.matmul.default, (part, w))
    y = graph.call_function(torch.nn.functional.relu, (y,), {"inplace": False})
    y = graph.call_method("to", (y,), {"dtype": torch.float64, "device": torch.device("cpu")})
    z = graph.call_method("permute", (y, [1, 0]))
    size = graph.call_function(getattr, (z, "shape"))
    graph.output((z, size))
    return graph


def records() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(json.dumps(to_json(small_graph())))
    return found


def test_round_trip_runs_the_same() -> None:
    graph = small_graph()
    weight = {"a.weight": torch.randn(3, 2)}
    x = torch.randn(4, 4)
    expected = Program(graph, weight)(x)
    again = Program(from_json(records()), weight)(x)
    assert torch.equal(expected[0], again[0]) and expected[1] == again[1] == (2, 4)
    assert to_json(from_json(records())) == records()


def test_meta_is_kept() -> None:
    graph = small_graph()
    node = next(n for n in graph.nodes if n.op == "call_method")
    node.meta.update(site="model.a", device="host", kernel="cpu.add", segment=3, val=torch.zeros(1), stack=())
    found = next(n for n in from_json(to_json(graph)).nodes if n.op == "call_method")
    assert found.meta == {"site": "model.a", "device": "host", "kernel": "cpu.add", "segment": 3}


FORBIDDEN = [
    "fn:os:system",
    "fn:torch:load",
    "fn:torch:save",
    "fn:torch:from_file",
    "fn:torch:compile",
    "fn:torch:import_ir_module",
    "fn:torch:set_default_device",
    "fn:torch:_assert",
    "fn:torch:Tensor",
    "fn:torch.nn.functional:importlib",
    "fn:torch.nn.functional:handle_torch_function",
    "fn:operator:attrgetter",
    "fn:operator:methodcaller",
    "fn:operator:call",
    "fn:builtins:eval",
    "fn:builtins:__import__",
    "fn:math:nothing",
    "fn:subprocess:run",
    "op:aten.from_file.default",
    "op:aten.save.default",
    "op:prims.add.default",
    "op:kt.nothing.default",
    "op:aten.add",
    "op:aten.add.__class__",
    "",
    "os.system",
]


@pytest.mark.parametrize("target", FORBIDDEN)
def test_forbidden_function(target: str) -> None:
    damaged = records()
    damaged[3]["target"] = target
    with pytest.raises(ArtifactError):
        from_json(damaged)


@pytest.mark.parametrize(
    "method", ["tofile", "__class__", "__reduce_ex__", "apply_", "set_", "nothing", "storage"]
)
def test_forbidden_method(method: str) -> None:
    damaged = records()
    damaged[5]["target"] = method
    with pytest.raises(ArtifactError, match="no method"):
        from_json(damaged)


@pytest.mark.parametrize("attribute", ["__class__", "__dict__", "grad_fn", "data_ptr", 3, {"node": "x"}])
def test_forbidden_attribute(attribute: Any) -> None:
    damaged = records()
    damaged[7]["args"]["tuple"][1] = attribute
    with pytest.raises(ArtifactError):
        from_json(damaged)


def test_code_in_names_is_never_run(tmp_path: Path) -> None:
    """fx writes inputs and keyword names into the source it generates."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')"
    places: list[tuple[int, str, Any]] = [
        (0, "target", f"x, y={code}"),
        (0, "name", f"x={code}"),
        (5, "name", f"y = {code}\n"),
        (0, "args", {"tuple": [1]}),
        (4, "kwargs", {f"inplace={code}, x": 1}),
        (4, "kwargs", {"lambda": 1}),
        (5, "target", f"to({code})"),
        (1, "op", "call_module"),
        (1, "op", code),
    ]
    for index, key, value in places:
        damaged = records()
        damaged[index][key] = value
        with pytest.raises(ArtifactError):
            Program(from_json(damaged), {"a.weight": torch.zeros(3, 2)})(torch.zeros(4, 4))
    assert not mark.exists()


def test_strange_weight_names_are_only_names(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    name = f"w; open({str(mark)!r}, 'w')"
    changed = records()
    changed[1]["target"] = name
    Program(from_json(changed), {name: torch.zeros(3, 2)})(torch.zeros(4, 4))
    assert not mark.exists()


@pytest.mark.parametrize(
    "damage",
    [
        None,
        {},
        "text",
        [3],
        [[]],
        [{"op": "output"}],
        [{"name": "x", "op": "placeholder", "target": "x", "args": 3, "kwargs": {}}],
        [{"name": "x", "op": "get_attr", "target": "x", "args": [{"node": "y"}], "kwargs": {}}],
        [{"name": "x", "op": "get_attr", "target": "x", "args": [{"two": 1, "keys": 2}], "kwargs": {}}],
        [{"name": "x", "op": "get_attr", "target": "x", "args": [{"dtype": "nn"}], "kwargs": {}}],
        [{"name": "x", "op": "get_attr", "target": "x", "args": [{"device": "moon:1"}], "kwargs": {}}],
        [{"name": "x", "op": "get_attr", "target": "x", "args": [], "kwargs": 7}],
    ],
)
def test_not_a_graph(damage: object) -> None:
    with pytest.raises(ArtifactError):
        from_json(damage)


def test_every_field_of_a_record_is_needed() -> None:
    for index, record in enumerate(records()):
        for key in ("name", "op", "target", "args", "kwargs"):
            damaged = copy.deepcopy(records())
            del damaged[index][key]
            with pytest.raises(ArtifactError):
                from_json(damaged)
        assert set(record) >= {"name", "op", "target", "args", "kwargs", "meta"}


def test_what_cannot_be_written() -> None:
    for make in (
        lambda g, x: g.call_function(print, (x,)),
        lambda g, x: g.call_function(torch.save, (x, "f")),
        lambda g, x: g.call_method("tofile", (x, "f")),
        lambda g, x: g.call_function(getattr, (x, "grad_fn")),
        lambda g, x: g.call_function(torch.add, (x, 1j)),
        lambda g, x: g.call_module("m", (x,)),
    ):
        graph = fx.Graph()
        graph.output(make(graph, graph.placeholder("x")))
        with pytest.raises(ArtifactError):
            to_json(graph)

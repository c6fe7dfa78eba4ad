"""Stamping changes nothing, takes no layer for equal that is not, and captures in threads do not mix."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.fx as fx
from support.architectures import ARCHITECTURES, tiny_config
from torch import nn

from ktc.capture import Captured, capture_language_model, capture_module, materialise, meta_model
from ktc.capture.stamp import fingerprint, stampable


def _listing(captured: Captured) -> list[str]:
    """Everything of a graph that matters, symbols of shapes by their dimension's name."""

    def text(value: Any) -> str:
        shown = str(tuple(value.shape)) + str(value.dtype) if isinstance(value, torch.Tensor) else str(value)
        for name, symbol in captured.dims.items():
            shown = shown.replace(symbol, name)
        return shown

    def line(node: fx.Node) -> str:
        values = fx.node.map_aggregate(node.meta.get("val"), lambda v: text(v) if v is not None else "")
        return f"{node.format_node()} {values} {node.meta.get('stack')} {node.meta.get('site')}"

    return [line(node) for node in captured.module.graph.nodes]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stamped_graph_equals_traced_graph(name: str) -> None:
    config = tiny_config(name, layers=3)
    stamped = capture_language_model(meta_model(config))
    traced = capture_language_model(meta_model(config), stamp=False)
    assert _listing(stamped) == _listing(traced)
    assert stamped.caches == traced.caches
    assert stamped.parameters == traced.parameters


def test_layers_that_differ_in_one_attribute_are_not_equal() -> None:
    layers = meta_model(tiny_config("gemma3_text", layers=4)).model.layers
    assert fingerprint(layers[0]) == fingerprint(layers[2])
    assert fingerprint(layers[0]) != fingerprint(layers[1])


class Layer(nn.Module):
    """Scales by a plain attribute and adds a parameter."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x + self.bias


class Stack(nn.Module):
    """Layers in a row; the third has another factor, the fourth a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(f) for f in (2.0, 2.0, 3.0, 2.0, 2.0)])
        self.layers[3].register_forward_hook(lambda module, args, result: -result)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_attributes_and_hooks_of_single_layers_are_kept() -> None:
    model, x = Stack(), torch.randn(3, 4)
    captured = capture_module(model, {"x": x})
    with torch.no_grad():
        (found,) = materialise(captured, model.state_dict())(x)
        torch.testing.assert_close(found, model(x), rtol=0, atol=0)


class Sharing(nn.Module):
    """Layers that read a tensor which is no argument of theirs."""

    class Part(nn.Module):
        """Adds what its owner left in a list."""

        def __init__(self, board: list[torch.Tensor]) -> None:
            super().__init__()
            self.board = board

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.board[-1]

    def __init__(self) -> None:
        super().__init__()
        self.board: list[torch.Tensor] = []
        self.parts = nn.ModuleList([Sharing.Part(self.board) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            self.board.append(x * 2)
            x = part(x)
        self.board.clear()
        return x


def test_layers_that_read_more_than_their_arguments_are_traced_each() -> None:
    model, x = Sharing(), torch.randn(3, 4)
    (found,) = materialise(capture_module(model, {"x": x}), {})(x)
    torch.testing.assert_close(found, 27 * x)


def test_stampable_are_the_outermost_lists() -> None:
    model = meta_model(tiny_config("mixtral", layers=3))
    assert stampable(model) == frozenset(id(layer) for layer in model.model.layers)


def test_captures_in_threads_do_not_mix() -> None:
    names = ("llama", "qwen3")
    alone = {name: _listing(capture_language_model(meta_model(tiny_config(name)))) for name in names}
    linear, x = nn.Linear(4, 4), torch.randn(2, 4)
    expected = linear(x)
    results: dict[tuple[str, int], list[str]] = {}
    done = threading.Event()
    strays: list[bool] = []

    def capture(name: str, turn: int) -> None:
        results[name, turn] = _listing(capture_language_model(meta_model(tiny_config(name))))

    def bystander() -> None:
        while not done.is_set():
            strays.append(not torch.equal(linear(x), expected))

    other = threading.Thread(target=bystander)
    other.start()
    threads = [threading.Thread(target=capture, args=(n, i)) for i in range(2) for n in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    other.join()
    assert all(results[name, turn] == alone[name] for name in alone for turn in range(2))
    assert strays
    assert not any(strays)
    assert nn.Module.__call__.__module__ == "torch.nn.modules.module"

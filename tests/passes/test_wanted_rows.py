"""wanted_rows: what follows the last attention is computed for the wanted tokens alone, and gives the same logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.fx as fx
from ktc.grammar.loading import load
from ktc.passes.context import Context
from ktc.passes.edit import call, refresh
from ktc.passes.emit import emit
from ktc.passes.ops import op_name
from ktc.passes.wanted_rows import WantedRows
from support.compiling import compile_for, tiny
from support.families import FAMILIES
from support.tiny_models import tiny_model

from ktc.capture import capture_language_model, meta_model
from ktc.compiler import Options, compile_language_model
from ktc.runtime.graph_engine import GraphEngine
from ktc.weights.state_dict import StateDictSource

CACHE = "rule cache { match @attention cache paged(dtype = f32, tokens = 64) }\n"


@pytest.fixture
def captured() -> tuple[fx.GraphModule, Context]:
    """The tiny Llama as it is captured, and a context to run the pass in."""
    model = tiny("llama")
    context = compile_for(model, "", weights=False).context
    return capture_language_model(meta_model(model.config, torch.float32)).module, context


def choices(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is torch.index_select]


def sizes(node: fx.Node) -> list[str]:
    value = node.meta["val"]
    parts = value if isinstance(value, (tuple, list)) else [value]
    return [str(size) for part in parts if isinstance(part, torch.Tensor) for size in part.shape]


def last_attention(graph: fx.Graph) -> fx.Node:
    return [
        node for node in graph.nodes if "attention" in op_name(node) and "seq_starts" in map(str, node.args)
    ][-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_behind_the_last_attention_has_all_tokens(name: str) -> None:
    family = FAMILIES[name]
    model = tiny_model(family.architecture, **family.changes)
    done = compile_for(model, f'include "std/{family.library}.kt"\n{CACHE}')
    graph = done.context.phases["step"].graph
    given = {node.name: node.meta["val"] for node in graph.nodes if node.op == "placeholder"}
    tokens, wanted = str(given["input_ids"].shape[1]), str(given["logits_index"].shape[0])
    picks = choices(graph)
    assert len(picks) == 2, "of what attention gives, and of the residual stream"
    nodes = list(graph.nodes)
    behind = [
        n for n in nodes[nodes.index(last_attention(graph)) + 1 :] if n.op not in ("get_attr", "output")
    ]
    whole = [n for n in behind if tokens in sizes(n) and any(user not in picks for user in n.users)]
    assert whole == [] and all(wanted in sizes(n) for n in behind if sizes(n))
    narrowed = {event.subject for event in done.context.events if event.kind == "narrowed"}
    layer = model.config.num_hidden_layers - 1
    assert {"model.norm", f"model.layers.{layer}.self_attn.o_proj"} <= narrowed
    assert not any(site.startswith("model.layers.0.") for site in narrowed)


@pytest.mark.parametrize("name", ["gemma3", "qwen2_moe", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("native", [False, True])
def test_logits_of_some_tokens_are_those_of_all(name: str, native: bool) -> None:
    family = FAMILIES[name]
    model = tiny_model(family.architecture, **family.changes)
    context = compile_for(model, f'include "std/{family.library}.kt"\n{CACHE}').context
    engine = GraphEngine(emit(context), StateDictSource(model.state_dict(), model.config), native=native)
    program = engine.programs["step"]
    step = {
        "input_ids": torch.randint(3, 500, (1, 11), generator=torch.Generator().manual_seed(3)),
        "positions": torch.tensor([[*range(7), *range(4)]]),
        "seq_starts": torch.tensor([0, 7, 11], dtype=torch.int32),
        "context_lens": torch.tensor([7, 4], dtype=torch.int32),
        "block_tables": torch.tensor([[0], [1]], dtype=torch.int32),
        "slots": torch.tensor([*range(7), *range(32, 36)]),
    }

    def logits(*wanted: int) -> torch.Tensor:
        given = step | {"logits_index": torch.tensor(wanted)}
        result: torch.Tensor = program(*(given[name] for name in program.inputs))
        return result.clone()

    every = logits(*range(11))
    assert every.shape[1] == 11
    for wanted in ((10,), (0, 6, 7), (6, 10)):
        got = logits(*wanted)
        assert got.shape == (1, len(wanted), every.shape[2])
        torch.testing.assert_close(got, every[:, list(wanted)], rtol=1e-4, atol=1e-4)


def test_a_value_that_is_read_elsewhere_stays_whole(captured: tuple[fx.GraphModule, Context]) -> None:
    gm, context = captured
    (choice,) = choices(gm.graph)
    output = gm.graph.output_node()
    output.args = ((output.args[0], choice.args[0]),)
    before, events = str(gm.graph), len(context.events)
    assert str(WantedRows()(gm, context).graph) == before
    assert len(context.events) == events


@pytest.mark.parametrize(
    "mixing",
    [lambda x: torch.cumsum(x, 1), lambda x: torch.softmax(x, 1), lambda x: torch.flip(x, [1])],
)
def test_what_looks_along_the_tokens_keeps_all_of_them(
    captured: tuple[fx.GraphModule, Context], mixing: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    gm, context = captured
    (choice,) = choices(gm.graph)
    norm = choice.args[0]
    assert isinstance(norm, fx.Node)
    traced = fx.symbolic_trace(mixing).graph
    made = next(node for node in traced.nodes if node.op == "call_function")
    source = norm.all_input_nodes[0]
    with gm.graph.inserting_after(source):
        mixed = call(gm.graph, made.target, (source, *made.args[1:]))
    norm.replace_input_with(source, mixed)
    refresh(gm.graph, [mixed])
    (pick,) = choices(WantedRows()(gm, context).graph)
    assert pick.args[0] is mixed and list(pick.users) == [norm]


def test_a_view_that_cuts_rows_differently_ends_the_move(captured: tuple[fx.GraphModule, Context]) -> None:
    gm, context = captured
    (choice,) = choices(gm.graph)
    norm = choice.args[0]
    assert isinstance(norm, fx.Node)
    source = norm.all_input_nodes[0]
    width = source.meta["val"].shape[-1]
    tokens = next(node for node in gm.graph.nodes if node.target is torch.ops.aten.sym_size.int)
    with gm.graph.inserting_after(source):
        halves = gm.graph.call_method("view", (source, 2, tokens, width // 2))
    halves.meta["val"] = source.meta["val"].view(2, source.meta["val"].shape[1], width // 2)
    with gm.graph.inserting_after(halves):
        back = gm.graph.call_method("view", (halves, 1, tokens, width))
    back.meta["val"] = halves.meta["val"].view(1, source.meta["val"].shape[1], width)
    norm.replace_input_with(source, back)
    (pick,) = choices(WantedRows()(gm, context).graph)
    assert pick.args[0] is back


def test_rows_are_picked_before_they_travel() -> None:
    """The last layer's attention on the GPU, what follows on the CPU: the rows wanted cross, not the prompt's."""
    rules = """
    device host = cpu (memory = 1GiB)
    device gpu = cuda:0 (memory = 24GiB)
    rule everything { match ** place gpu }
    rule feed_forward { match model.layers[-1].mlp or model.layers[-1].post_attention_layernorm place host }
    rule last { match model.norm or lm_head place host }
    include "std/fusions.kt"
    """
    done = compile_language_model(load(rules, text=True), tiny("llama").config, None, Options(planning=True))
    graph = done.context.phases["step"].graph
    wanted = next(str(n.meta["val"].shape[0]) for n in graph.nodes if n.name == "logits_index")
    crossing = [n for n in graph.nodes if op_name(n) == "kt.transfer" and n.meta["device"] == "host"]
    assert crossing and all(wanted in sizes(n) for n in crossing)

"""Native segments give what the Python program gives, bit by bit, whatever lies between them."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import pytest
import torch
from ktc.backends.cpu.library import OperandError
from ktc.grammar.loading import as_rules
from ktc.passes.emit import emit
from support.tiny_models import tiny_model

from ktc import _cpu
from ktc.compiler import Options, compile_language_model
from ktc.runtime.cache import KtcCache
from ktc.runtime.graph_engine import GraphEngine
from ktc.runtime.native_shapes import step_sizes
from ktc.runtime.placement import Placement
from ktc.runtime.runner import Runner
from ktc.weights.state_dict import StateDictSource

RULES = """
include "std/{family}.kt"
device host = cpu
rule everything {{ match ** place host }}
rule attention {{ match @attention cache paged(dtype = {cache}, tokens = 512) }}
"""


def placed(
    architecture: str, family: str, cache: str = "f16", **changes: object
) -> tuple[Placement, StateDictSource]:
    model = tiny_model(architecture, **changes)
    source = StateDictSource(model.state_dict(), model.config)
    rules = as_rules(RULES.format(family=family, cache=cache))
    return emit(compile_language_model(rules, model.config, source, Options()).context), source


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "qwen2_moe", "deepseek_v2"])
@pytest.mark.parametrize("format", ["f32", "q8_0"])
def test_a_step_needs_no_more_than_the_plan_charges(architecture: str, format: str) -> None:
    family = {"gemma3_text": "gemma3"}.get(architecture, architecture)
    model = tiny_model(architecture)
    source = StateDictSource(model.state_dict(), model.config)
    text = (
        RULES.format(family=family, cache="f16") + f"rule some {{ match @linears quant {format} expect any }}"
    )
    context = compile_language_model(as_rules(text), model.config, source, Options()).context
    assert context.memory is not None
    planned = context.memory.devices["host"].activations
    engine = GraphEngine(emit(context), source, native=True)
    segments = [segment for program in engine.programs.values() for segment in program.segments]
    blocks = engine.pool.allocator.free_blocks
    needed = [
        segment.program.workspace_bytes(step_sizes(tokens, 1, blocks, 1))
        for tokens in (context.chunk, 1) for segment in segments
    ]  # fmt: skip
    assert 0 < max(needed) <= planned + 64 * 64, "but for the rounding of every tensor to lines of 64 bytes"


def logits(engine: GraphEngine) -> Iterator[torch.Tensor]:
    """Of prefills in chunks, with every and the last logit, and decoding steps of three sequences and of one."""
    runner = Runner(engine, prefill_chunk=24)
    torch.manual_seed(1)
    ids = torch.randint(0, 500, (3, 33))
    for batch, kept in ((ids, 0), (ids[:1], 1)):
        cache = KtcCache(engine.pool)
        yield runner.forward(batch, None, None, cache, kept)
        for index in range(5):
            yield runner.forward(batch[:, index : index + 1], None, None, cache, 1)


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "qwen2_moe", "deepseek_v2"])
def engines(request: pytest.FixtureRequest) -> tuple[GraphEngine, GraphEngine]:
    """One model as Python and as native programs."""
    family = {"gemma3_text": "gemma3"}.get(request.param, request.param)
    placement, source = placed(request.param, family)
    python, native = (GraphEngine(placement, source, native=choice) for choice in (False, True))
    return python, native


def test_equals_the_python_program(engines: tuple[GraphEngine, GraphEngine]) -> None:
    python, native = engines
    assert not python.programs["step"].segments and native.programs["step"].segments
    for wanted, got in zip(logits(python), logits(native), strict=True):
        if native.config.model_type == "qwen2_moe":  # torch rounds its sigmoid otherwise,
            assert (wanted - got).abs().max() < 1e-2  # and a tipped rounding to int8 carries on
        else:
            assert torch.equal(wanted, got)


def test_every_family_is_one_segment(engines: tuple[GraphEngine, GraphEngine]) -> None:
    pieces = engines[1].programs["step"].pieces
    assert [(piece.native, piece.reasons) for piece in pieces] == [(True, {})]
    (event,) = engines[1].events
    assert (event.kind, event.subject) == ("segment", "step.0")
    assert event.data["native"] and event.data["ops"] > 10


def test_any_number_of_threads_and_counting_change_nothing(
    engines: tuple[GraphEngine, GraphEngine],
) -> None:
    native = engines[1]
    wanted = list(logits(native))
    for segment in native.programs["step"].segments:
        segment.program.count(True)
    before = _cpu.threads()
    try:
        _cpu.set_threads(5)
        assert all(torch.equal(a, b) for a, b in zip(wanted, logits(native), strict=True))
    finally:
        _cpu.set_threads(before)
        counters = [c for s in native.programs["step"].segments for c in s.program.counters()]
        for segment in native.programs["step"].segments:
            segment.program.count(False)
    assert {"linear", "rms_norm", "embedding"} <= {kind for _, kind, *_ in counters}
    assert all(calls > 0 and seconds >= 0 and moved > 0 for _, _, calls, seconds, moved, _ in counters)
    assert not native.programs["step"].segments[0].program.counters()


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    placement, source = placed("llama", "llama")
    monkeypatch.setenv("KTC_NATIVE", "0")
    assert not GraphEngine(placement, source).programs["step"].segments
    monkeypatch.delenv("KTC_NATIVE")
    assert GraphEngine(placement, source).programs["step"].segments


def test_two_models_and_dtypes_of_caches() -> None:
    for cache in ("f32", "bf16"):
        placement, source = placed("llama", "llama", cache)
        first = GraphEngine(placement, source, native=True)
        second = GraphEngine(*placed("qwen2", "qwen2", cache), native=True)
        python = GraphEngine(placement, source, native=False)
        steps = zip(logits(first), logits(second), logits(python), strict=True)
        assert all(torch.equal(a, c) and a.shape == b.shape for a, b, c in steps)


def change(placement: Placement, find: str, insert: str) -> None:
    """Puts a call of a tensor method between the first node whose name starts with `find` and its users."""
    graph = placement.graphs["step"]
    node = next(n for n in graph.nodes if n.name.startswith(find))
    users = list(node.users)
    with graph.inserting_after(node):
        new = graph.call_method(insert, (node,))
    new.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, new)


@pytest.mark.parametrize(
    ("find", "insert", "native"),
    [
        ("layers_0_self_attn_view", "sin", False),
        ("linear_default", "tanh", False),
        ("embedding", "clone", True),
        ("layers_1_self_attn_transpose", "contiguous", True),
        ("layers_0_add", "exp2", False),
    ],
)
def test_what_has_no_native_op_runs_between_segments(find: str, insert: str, native: bool) -> None:
    placement, source = placed("llama", "llama")
    change(placement, find, insert)
    python, mixed = (GraphEngine(placement, source, native=choice) for choice in (False, True))
    pieces = mixed.programs["step"].pieces
    assert len(pieces) == (1 if native else 3)
    if not native:
        assert f"{insert} has no native op" in pieces[1].reasons.values()
    for wanted, got in zip(logits(python), logits(mixed), strict=True):
        assert torch.equal(wanted, got)


@pytest.mark.parametrize("function", ["__rtruediv__", "__rsub__", "__radd__", "__rmul__", "sub", "div"])
def test_numbers_and_tensors(function: str) -> None:
    placement, source = placed("llama", "llama")
    graph = placement.graphs["step"]
    node = next(n for n in graph.nodes if n.name.startswith("embedding"))
    plain = {"__rtruediv__": operator.truediv, "__rsub__": operator.sub, "__radd__": operator.add}
    with graph.inserting_after(node):
        if function in plain:
            new = graph.call_function(plain[function], (0.3, node))
        elif function == "__rmul__":
            new = graph.call_function(operator.mul, (node, node))
        else:
            new = graph.call_method(function, (node, 0.7))
    new.meta = dict(node.meta)
    for user in [u for u in node.users if u is not new]:
        user.replace_input_with(node, new)
    python, native = (GraphEngine(placement, source, native=choice) for choice in (False, True))
    assert len(native.programs["step"].pieces) == 1
    assert all(torch.equal(a, b) for a, b in zip(logits(python), logits(native), strict=True))


def test_bad_steps_are_refused_with_the_node() -> None:
    placement, source = placed("llama", "llama")
    engine = GraphEngine(placement, source, native=True)
    program = engine.programs["step"]
    good = {
        "input_ids": torch.tensor([[1, 2]]), "positions": torch.tensor([[0, 1]]),
        "seq_starts": torch.tensor([0, 2], dtype=torch.int32),
        "context_lens": torch.tensor([2], dtype=torch.int32),
        "block_tables": torch.zeros(1, 1, dtype=torch.int32), "slots": torch.tensor([0, 1]),
        "logits_index": torch.tensor([1]),
    }  # fmt: skip

    def run(**changes: torch.Tensor) -> torch.Tensor:
        step = good | changes
        result: torch.Tensor = program(*(step[name] for name in program.inputs))
        return result

    wanted = run()
    with pytest.raises(OperandError, match=r"embedding.*token id 512"):
        run(input_ids=torch.tensor([[1, 512]]))
    with pytest.raises(OperandError, match="_wanted: index 2"):
        run(logits_index=torch.tensor([2]))
    with pytest.raises(OperandError, match=r"attention.*slots"):
        run(slots=torch.tensor([0, 10**9]))
    with pytest.raises(OperandError, match=r"attention.*block_tables"):
        run(block_tables=torch.full((1, 1), 10**6, dtype=torch.int32))
    with pytest.raises(OperandError, match="positions must be"):
        run(positions=torch.tensor([[0, 1, 2]]))
    with pytest.raises(OperandError, match="slots must be"):
        run(slots=torch.tensor([0, 1], dtype=torch.int32))
    assert torch.equal(run(), wanted)
    strided = torch.stack([good["input_ids"], good["input_ids"]], dim=-1)[..., 0]
    assert torch.equal(run(input_ids=strided), wanted)

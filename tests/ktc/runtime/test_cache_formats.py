"""Whole models whose key/value caches are q8_0 by rule: native and Python programs, references, bytes, artifacts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ktc.grammar import KtError
from ktc.grammar.loading import as_rules
from ktc.passes.emit import emit
from support.levels import float_activations
from support.packed_weights import nmse
from support.tiny_models import tiny_model

from ktc.compiler import Options, compile_language_model
from ktc.runtime.cache import KtcCache
from ktc.runtime.graph_engine import GraphEngine
from ktc.runtime.placement import Placement
from ktc.runtime.runner import Runner
from ktc.weights.state_dict import StateDictSource

RULES = """
include "std/{family}.kt"
device host = cpu
rule everything {{ match ** place host }}
rule attention {{ match @attention kernel {kernel} cache paged(dtype = {cache}, tokens = 96) }}
"""
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32},
    "gpt_oss": {"head_dim": 32},
    "deepseek_v2": {"qk_rope_head_dim": 32},
}


def engine(name: str, cache: str, kernel: str = "auto", native: bool = True) -> GraphEngine:
    model = tiny_model(name, **MODELS[name])
    source = StateDictSource(model.state_dict(), model.config)
    family = {"gemma3_text": "gemma3"}.get(name, name)
    rules = as_rules(RULES.format(family=family, cache=cache, kernel=kernel))
    context = compile_language_model(rules, model.config, source, Options()).context
    made = GraphEngine(emit(context), source, native=native)
    assert made.pool.nbytes == context.memory.token_bytes * made.pool.capacity
    return made


def logits(made: GraphEngine) -> torch.Tensor:
    """Of a prompt of two sequences in two chunks, and of four more tokens one by one."""
    runner = Runner(made, prefill_chunk=12)
    ids = torch.randint(0, 500, (2, 24), generator=torch.Generator().manual_seed(1))
    cache = KtcCache(made.pool)
    found = [runner.forward(ids[:, :20], None, None, cache, 0)]
    found += [runner.forward(ids[:, index : index + 1], None, None, cache, 1) for index in range(20, 24)]
    return torch.cat([part.flatten(0, -2) for part in found])


@pytest.mark.parametrize("name", MODELS)
def test_native_python_and_reference_agree(name: str) -> None:
    native = logits(engine(name, "q8_0"))
    assert torch.equal(native, logits(engine(name, "q8_0", native=False)))
    op = "torch.mla_attention" if name == "deepseek_v2" else "torch.attention"
    # Levels that round the operands of attention: measured up to 2.2e-5.
    assert nmse(native, logits(engine(name, "q8_0", op, native=False)).double()) <= 1e-4
    with float_activations():
        reference = logits(engine(name, "q8_0", op, native=False)).double()
        assert nmse(logits(engine(name, "q8_0")), reference) <= 1e-6
    exact = logits(engine(name, "f32")).double()
    # The median over tokens: a router's choice may flip, which is no small error.
    errors = ((native - exact).square().sum(1) / exact.square().sum(1)).sort().values
    assert 0 < errors[len(errors) // 2] <= 1e-3


def test_a_token_takes_34_bytes_for_32_elements() -> None:
    q8_0, f16 = engine("llama", "q8_0"), engine("llama", "f16")
    assert 32 * q8_0.pool.nbytes == 17 * f16.pool.nbytes


def test_an_artifact_keeps_the_format() -> None:
    placement = engine("llama", "q8_0").placement
    again = Placement.from_json(placement.to_json(), placement.buffers, placement.config)
    assert {cache.dtype for cache in again.caches} == {"q8_0"}


def test_heads_that_it_cannot_hold_are_refused_at_compile_time() -> None:
    model = tiny_model("llama", head_dim=48)
    rules = as_rules(RULES.format(family="llama", cache="q8_0", kernel="auto"))
    with pytest.raises(KtError) as caught:
        compile_language_model(
            rules, model.config, StateDictSource(model.state_dict(), model.config), Options()
        )
    problem = caught.value.diagnostics[0]
    assert problem.code == "KT402" and len(problem.labels) == 2, "the rules for its place and its cache"
    assert "cpu.attention: a q8_0 cache takes rows of a multiple of 32 elements, not 48" in problem.notes

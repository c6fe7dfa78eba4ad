"""plan_memory: bytes as they will be, budgets and asserts."""

from __future__ import annotations

import pytest
import torch
from ktc.grammar.diagnostics import KtError
from ktc.passes.emit import emit
from support.compiling import HOST, compile_for, tiny
from support.peak_memory import PeakMemory

import ktc
from ktc.runtime.graph_engine import GraphEngine, make_pool


def test_planned_bytes_are_the_bytes_in_memory(compiled):
    done = compiled("rule c { match model.layers[*].self_attn cache paged(dtype = f16, tokens = 96) }")
    placement = emit(done.context)
    engine = GraphEngine(placement, done.context.source)
    plan = done.context.memory.devices["host"]
    assert plan.weights == engine.weight_bytes
    assert plan.cache == engine.pool.nbytes == make_pool(placement).nbytes
    assert engine.pool.capacity == 96


def test_activations_grow_with_the_step_and_die_after_their_last_use(compiled):
    done = compiled()
    plan = done.context.memory
    tokens, widest = plan.chunk, 512
    assert tokens * widest * 4 <= plan.devices["host"].activations <= 12 * tokens * widest * 4


def test_over_the_declared_budget(compiled):
    text = "device host = cpu (memory = 2MiB)\nrule everything { match ** place host }\n"
    with pytest.raises(KtError) as caught:
        compiled(text, bare=True)
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT301" and "`host` needs" in problem.message
    assert any(note.startswith("largest:") for note in problem.notes)


def test_asserts_see_peaks_sets_and_parameters(compiled):
    text = """
    param limit: size = 1GiB
    let mlps = match model.layers[*].mlp
    assert peak(host) <= limit, "raise limit"
    assert bytes(@mlps) < peak(host)
    assert balance(host) == 1
    """
    compiled(text)
    with pytest.raises(KtError) as caught:
        compiled(text, params={"limit": "1MiB"})
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT304" and problem.notes[-1] == "hint of the file: raise limit"


def test_cache_dtype_and_tokens_by_rule(compiled):
    done = compiled("rule c { match model.layers[1].self_attn cache paged(dtype = f16, tokens = 64) }")
    placement = emit(done.context)
    assert [cache.dtype for cache in placement.caches] == ["float32", "float16"]


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "qwen2_moe", "gpt_oss"])
def test_planned_activations_are_what_a_prefill_step_holds(name, monkeypatch):
    """Of MoE models too, whose experts are one op: what torch makes in a step of 512 tokens, run node by node."""
    monkeypatch.setenv("KTC_NATIVE", "0")
    model, library = tiny(name), f'include "std/{name}.kt"\n'
    plan = compile_for(model, library).context.memory.devices["host"].activations
    placed = ktc.rewrite(model, HOST + library)
    ids = torch.randint(3, 500, (1, 512), generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), PeakMemory() as seen:
        placed(ids, use_cache=True, logits_to_keep=1)
    assert seen.peak <= plan * 1.02, "a plan that promises too little"
    assert plan <= 1.5 * seen.peak, "a plan that wastes memory"


def test_a_streamed_weight_takes_the_bytes_of_its_layout(compiled):
    """A weight that a phase copies to another device is charged there as packed, not as the floats it stands for."""
    text = """
    device host = cpu (memory = 1GiB)
    device far = cpu (memory = 1GiB)
    phase bulk = tokens >= 64
    rule everything { match ** place host quant q8_0 }
    rule mlps { match model.layers[*].mlp on bulk { place far } }
    """
    done = compiled(text, bare=True)
    rows = {weight.name: s.nbytes for weight in done.context.weights.values() for s in weight.stores.values()}
    one = rows["model.layers.0.mlp.down_proj.weight"]
    assert one < 512 * 256 * 1.2
    far = done.context.memory.devices["far"]
    assert far.weights == 0
    assert 3 * 512 * 512 * 4 <= far.activations <= 3 * 512 * 512 * 4 + 3 * one


def test_a_kernel_that_asks_for_workspace_is_charged_while_it_runs(monkeypatch):
    from ktc.backends.registry import kernels

    plain = compile_for(tiny("llama"), "").context.memory.devices["host"].activations
    kernel = kernels()["cpu.attention"]
    asked = lambda node, weights: 16384 * node.meta["val"].shape[1]  # noqa: E731
    monkeypatch.setitem(kernel.__dict__, "workspace", asked)
    more = compile_for(tiny("llama"), "").context.memory.devices["host"].activations
    assert 16384 * 512 < more <= plain + 16384 * 512

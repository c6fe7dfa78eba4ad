"""plan_memory: bytes as they will be, budgets and asserts."""

from __future__ import annotations

import pytest
from ktc.grammar.diagnostics import KtError
from ktc.passes.emit import emit

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

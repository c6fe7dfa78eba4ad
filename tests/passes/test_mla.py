"""std/mla.kt: absorbed latent attention gives the same logits, from a cache planned and allocated for latents."""

from __future__ import annotations

import pytest
import torch
from ktc.grammar.diagnostics import KtError
from ktc.passes.emit import emit
from ktc.passes.ops import op_name
from support.compiling import HOST, compile_for, tiny

import ktc
from ktc.cli.plan import views
from ktc.runtime.graph_engine import make_pool

LATENT = ("deepseek_v2", "deepseek_v3")
ABSORBED = 'include "std/mla.kt"\n'


def entry(config, absorbed):
    """Elements of cache that one token takes in one layer."""
    if absorbed:
        return config.kv_lora_rank + config.qk_rope_head_dim
    return config.num_attention_heads * (
        config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    )


@torch.no_grad()
def logits(model, rows, tail):
    """Of a ragged batch: a prefill with left padding, then `tail` steps of one token each row."""
    width = max(len(row) for row in rows) - tail
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        head = row[: len(row) - tail]
        ids[i, width - len(head) :], mask[i, width - len(head) :] = head, 1
    out = model(ids, attention_mask=mask, use_cache=True)
    found, cache = [out.logits[:, -1:]], out.past_key_values
    for step in range(tail):
        mask = torch.cat((mask, torch.ones(len(rows), 1, dtype=torch.int64)), 1)
        token = torch.stack([row[len(row) - tail + step] for row in rows])[:, None]
        out = model(token, attention_mask=mask, past_key_values=cache, use_cache=True)
        found.append(out.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("name", LATENT)
def test_absorbed_and_unabsorbed_give_the_same_logits(name):
    model = tiny(name)
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 500, (n,), generator=generator) for n in (41, 12, 9)]
    plain, absorbed = ktc.rewrite(model, HOST), ktc.rewrite(model, HOST + ABSORBED)
    a, b = logits(plain, rows, 8), logits(absorbed, rows, 8)
    with torch.no_grad():
        expected = torch.cat([model(row[None]).logits[:, -9:] for row in rows])
    assert (a - expected).norm() / expected.norm() < 1e-5
    assert (b - a).norm() / a.norm() < 1e-5
    config = model.config
    sizes = [placed.engine.pool.nbytes / placed.engine.pool.capacity for placed in (plain, absorbed)]
    assert sizes == [4 * config.num_hidden_layers * entry(config, absorbed) for absorbed in (False, True)]


@pytest.mark.parametrize("name", LATENT)
def test_the_plan_counts_the_latent_cache(name):
    model, rule = tiny(name), "rule c { match @attention cache paged(dtype = f16, tokens = 64) }"
    library = f'include "std/{name}.kt"\n'
    done = compile_for(model, library + rule)
    context, layers = done.context, model.config.num_hidden_layers
    pool = make_pool(emit(context))
    assert context.memory.token_bytes == 2 * layers * entry(model.config, True)
    assert context.memory.devices["host"].cache == pool.nbytes == 64 * context.memory.token_bytes
    assert {c.heads for c in context.caches} == {1}
    full = compile_for(model, 'include "std/decoder.kt"\n' + rule).context.memory
    assert full.token_bytes == 2 * layers * entry(model.config, False)


def test_kv_b_is_loaded_through_two_views_and_one_rule_speaks_of_both():
    model = tiny("deepseek_v3")
    heads, nope = model.config.num_attention_heads, model.config.qk_nope_head_dim
    done = compile_for(model, ABSORBED + "rule kv { match **.kv_b_proj quant q8_0 }")
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    keys, values = (done.context.weights[f"{name}:mla_{part}_weight"] for part in ("key", "value"))
    assert name not in done.context.weights
    assert keys.shape == (heads, model.config.kv_lora_rank, nope)
    assert values.shape == (heads, model.config.v_head_dim, model.config.kv_lora_rank)
    assert (keys.format, values.format) == ("q8_0", "q8_0")
    assert str(keys.assembly) == f"mla_key_weight({name}, heads = {heads}, nope = {nope})"
    assert views(done.context) == {"mla_key_weight": 2, "mla_value_weight": 2}
    shown = {e.data["view"] for e in done.context.events if e.kind == "format"}
    assert str(values.assembly) in shown


def test_a_format_that_does_not_divide_the_view_names_it():
    with pytest.raises(KtError) as caught:
        compile_for(tiny("deepseek_v3"), ABSORBED + "rule kv { match **.kv_b_proj quant q4_k }")
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT605" and "have 64 elements" in problem.message
    assert any("mla_key_weight(model.layers.0.self_attn.kv_b_proj.weight" in note for note in problem.notes)
    assert problem.notes[-1] == "and 1 more weight", "one diagnostic, not one a layer"


def test_the_products_at_the_head_of_the_layer_are_merged():
    done = compile_for(tiny("deepseek_v3"), 'include "std/deepseek_v3.kt"\n')
    merged = [name for name in done.context.weights if "q_a_proj+kv_a_proj_with_mqa" in name]
    assert len(merged) == 2
    ops = [op_name(node) for node in done.context.phases["step"].graph.nodes]
    assert "kt.concat" not in ops and "kt.mla_key_weight" not in ops


def test_place_auto_foresees_the_latent_cache():
    """It runs before any rewrite, and counts what they will leave."""
    text = """
    device fast = cpu (memory = 1GiB)
    rule attention { match model.layers[*].self_attn place auto(fast, host) cache paged(dtype = f16, tokens = 4096) }
    """
    model = tiny("deepseek_v3")
    sizes = []
    for libraries in ("", ABSORBED):
        events = compile_for(model, libraries + text).context.events
        sizes.append([e.data["bytes"] for e in events if e.stage == "autoplace" and e.kind == "placed"])
    saved = 2 * 4096 * (entry(model.config, False) - entry(model.config, True))
    assert [full - latent for full, latent in zip(*sizes, strict=True)] == [saved, saved]

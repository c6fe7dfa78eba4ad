"""Folding: concatenations and views of weights become one weight to load, whatever was built of what."""

from __future__ import annotations

import pytest
import torch
from ktc.grammar.diagnostics import KtError
from ktc.passes.emit import emit
from ktc.passes.ops import op_name
from support.compiling import compile_for, tiny

from ktc.runtime.assembly import Assembly
from ktc.runtime.graph_engine import stored_weights
from ktc.runtime.load import load_weights
from ktc.runtime.placement import WeightEntry
from ktc.weights.views import Deinterleave, MlaKeys

GATE_UP = """
rewrite gated { pattern { y = kt.mul(kt.silu(g), u) } replace { y = kt.silu_mul(g, u) } }
rewrite merge {
  pattern {
    g = kt.linear(x, wg)
    u = kt.linear(x, wu)
    y = kt.silu_mul(g, u)
  }
  replace {
    gu     = kt.linear(x, kt.deinterleave(kt.concat(wg, wu, dim = 0)))
    g1, u1 = kt.split(gu, rows(wg), rows(wu))
    y      = kt.silu_mul(g1, u1)
  }
  expect layers
}
"""


def loaded(done):
    placement = emit(done.context)
    entries = [WeightEntry.from_json(entry.to_json()) for entry in placement.weights]
    assert tuple(entries) == placement.weights, "an artifact holds all of it"
    return load_weights(done.context.source, stored_weights(placement, done.context.source))


def test_a_view_of_a_concatenation_is_one_weight():
    model = tiny("llama")
    done = compile_for(model, GATE_UP + "rule k { match **: Linear kernel torch.linear }")
    ops = [op_name(node) for node in done.context.phases["step"].graph.nodes]
    assert "kt.concat" not in ops and "kt.deinterleave" not in ops
    name = "model.layers.1.mlp.gate_proj+up_proj.weight:deinterleave"
    gate, up = (f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up"))
    assert done.context.weights[name].assembly == Assembly((gate, up), Deinterleave())
    both = torch.cat([model.state_dict()[gate], model.state_dict()[up]])
    expected = torch.cat([both[:, ::2], both[:, 1::2]], dim=1)
    assert torch.equal(loaded(done)[name], expected)


def test_a_concatenation_of_views_keeps_the_order():
    inner = Assembly(("a",), Deinterleave())
    whole = Assembly((inner, "b", Assembly(("c", "d"))), MlaKeys(2, 4))
    assert whole.parameters == ("a", "b", "c", "d")
    assert whole.views == (Deinterleave(), MlaKeys(2, 4))
    assert str(whole) == "mla_key_weight(concat(deinterleave(a), b, concat(c, d)), heads = 2, nope = 4)"
    assert Assembly.from_json(whole.to_json()) == whole


def test_a_weight_read_plain_and_through_a_view_is_two_weights():
    """GPT-OSS experts are read through views; the same parameter read by hand as well stays what it is."""
    text = """
    rewrite twice {
      pattern { y = kt.silu(g) }
      replace { y = kt.silu(g) }
    }
    rewrite both {
      pattern {
        g = kt.linear(x, wg)
        a = kt.silu(g)
      }
      replace {
        h = kt.linear(x, kt.deinterleave(wg))
        a = kt.silu(kt.add(kt.linear(x, wg), h))
      }
      expect layers
    }
    """
    weights = compile_for(tiny("llama"), text).context.weights
    name = "model.layers.0.mlp.gate_proj.weight"
    assert {name, f"{name}:deinterleave"} <= weights.keys()


def test_experts_of_gpt_oss_are_turned_when_they_are_loaded():
    model = tiny("gpt_oss")
    done = compile_for(model, 'include "std/gpt_oss.kt"\nrule k { match @experts kernel torch.experts }')
    found, state = loaded(done), model.state_dict()
    base = "model.layers.0.mlp.experts."
    rows = state[base + "gate_up_proj"].transpose(1, 2)
    bias = state[base + "gate_up_proj_bias"]
    assert torch.equal(found[base + "gate_up_proj:expert_rows"], torch.cat([rows[:, ::2], rows[:, 1::2]], 1))
    assert torch.equal(found[base + "down_proj:expert_rows"], state[base + "down_proj"].transpose(1, 2))
    deinterleaved = torch.cat([bias[:, ::2], bias[:, 1::2]], 1)
    assert torch.equal(found[base + "gate_up_proj_bias:deinterleave"], deinterleaved)


def test_views_and_sizes_that_do_not_fit_are_errors_of_the_rewrite():
    text = """
    rewrite wrong {
      pattern { y = kt.linear(x: T[1, tokens, d], w) }
      replace { y = kt.linear(x, kt.mla_key_weight(w, heads = 3, nope = tokens)) }
    }
    """
    with pytest.raises(KtError) as caught:
        compile_for(tiny("llama"), text)
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT109" and "`tokens` is a dimension that differs" in problem.message
    with pytest.raises(KtError) as caught:
        compile_for(tiny("llama"), text.replace("nope = tokens", "nope = 8"))
    assert caught.value.diagnostics[0].code == "KT504", "the linear cannot take such a weight"

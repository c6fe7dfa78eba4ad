"""rewrite and the matcher: what fires, what is left alone and why, and that numbers stay the same."""

from __future__ import annotations

import pytest
from ktc.grammar.diagnostics import KtError
from ktc.passes.ops import op_name

ADD_NORM = """
rewrite add_rms_norm {
  pattern {
    sum  = kt.add(x: T[*, d], residual: T[*, d])
    norm = kt.rms_norm(sum, weight: T[d], eps = eps)
  }
  replace { norm, sum = kt.add_rms_norm(x, residual, weight, eps = eps) }
  expect 2 * layers
}
"""
GATED = """
rewrite gated {
  pattern { y = kt.mul(kt.silu(gate), up) }
  replace { y = kt.silu_mul(gate, up) }
  expect layers
}
"""
QKV = """
rewrite qkv {
  pattern { q = kt.linear(x, wq)  k = kt.linear(x, wk)  v = kt.linear(x, wv) }
  where same_format(wq, wk, wv)
  replace {
    qkv = kt.linear(x, kt.concat(wq, wk, wv, dim = 0))
    q, k, v = kt.split(qkv, rows(wq), rows(wk), rows(wv))
  }
  expect layers
}
"""


def census(compiled):
    counts: dict[str, int] = {}
    for node in compiled.context.phases["step"].graph.nodes:
        name = op_name(node).replace("kt_cpu.", "kt.")
        counts[name] = counts.get(name, 0) + 1
    return counts


def fired(compiled, name):
    (event,) = [e for e in compiled.context.events if e.stage == f"rewrite.{name}" and "fired" in e.data]
    return event.data["fired"]


def test_add_and_norm_become_one_op_with_two_outputs(compiled, same_logits):
    done = compiled(ADD_NORM)
    counts = census(done)
    assert fired(done, "add_rms_norm") == 4
    assert counts["kt.add_rms_norm"] == 4 and counts["kt.rms_norm"] == 1 and "kt.add" not in counts
    same_logits(ADD_NORM)


def test_nested_calls_match_whatever_the_order_of_a_commutative_op(compiled, same_logits):
    swapped = GATED.replace("kt.mul(kt.silu(gate), up)", "kt.mul(up, kt.silu(gate))")
    for text in (GATED, swapped):
        counts = census(compiled(text))
        assert counts["kt.silu_mul"] == 2 and "kt.silu" not in counts and "kt.mul" not in counts
    same_logits(swapped)


def test_siblings_merge_into_one_linear_whose_weight_is_folded(compiled, same_logits):
    done = compiled(QKV)
    assert "kt.concat" not in census(done)
    weight = done.context.weights["model.layers.1.self_attn.q_proj+k_proj+v_proj.weight"]
    assert weight.parameters == tuple(f"model.layers.1.self_attn.{n}_proj.weight" for n in "qkv")
    assert weight.shape == (256 + 128 + 128, 256)
    same_logits(QKV)


def test_rewrites_run_in_file_order_and_see_each_others_results(compiled, same_logits):
    merge = """
    rewrite gate_up {
      pattern { g = kt.linear(x, wg)  u = kt.linear(x, wu)  y = kt.silu_mul(g, u) }
      replace {
        gu = kt.linear(x, kt.concat(wg, wu, dim = 0))
        g, u = kt.split(gu, rows(wg), rows(wu))
        y = kt.silu_mul(g, u)
      }
      expect layers
    }
    """
    assert fired(compiled(GATED + merge), "gate_up") == 2
    same_logits(ADD_NORM + GATED + QKV + merge)
    with pytest.raises(KtError) as caught:
        compiled(merge + GATED)
    assert [d.code for d in caught.value.diagnostics] == ["KT503"]


def test_an_inner_value_used_outside_is_an_error_that_names_it(compiled):
    text = ADD_NORM.replace(
        "norm, sum = kt.add_rms_norm(x, residual, weight, eps = eps)",
        "norm = kt.rms_norm(x, weight, eps = eps)",
    )
    with pytest.raises(KtError) as caught:
        compiled(text)
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT502" and "`sum` is used outside" in problem.notes[0]


def test_a_wrong_number_of_firings_says_how_often_it_fired(compiled):
    with pytest.raises(KtError) as caught:
        compiled(GATED.replace("expect layers", "expect 7"))
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT503" and "fired 2 times, not 7" in problem.message


def test_where_can_refuse_a_place(compiled):
    text = GATED.replace("replace", "where not is_cpu(gate) replace").replace("expect layers", "expect any")
    done = compiled(text)
    assert fired(done, "gated") == 0
    assert {e.data["reason"] for e in done.context.events if e.kind == "missed"} == {"`where` does not hold"}


def test_a_rewrite_never_crosses_a_device_boundary(compiled):
    text = (
        "device host = cpu (memory = 1GiB)\ndevice far = cpu (memory = 1GiB)\n"
        "rule everything { match ** place host }\n"
        "rule act { match model.layers[0].mlp.act_fn place far }\n"
        + GATED.replace("expect layers", "expect 1")
    )
    done = compiled(text, bare=True)
    (missed,) = [e for e in done.context.events if e.kind == "missed"]
    assert "device boundary" in missed.data["reason"] and missed.subject.startswith("model.layers.0")


def test_an_attribute_the_pattern_does_not_mention_must_have_its_default(compiled):
    text = ADD_NORM.replace(", eps = eps)\n  }\n", ", eps = eps, offset = 1.0)\n  }\n").replace(
        "expect 2 * layers", "expect any"
    )
    assert fired(compiled(text), "add_rms_norm") == 0


def test_types_unify_and_dimensions_must_agree(compiled):
    text = GATED.replace("gate)", "gate: f16[*, d])").replace("expect layers", "expect any")
    assert fired(compiled(text), "gated") == 0
    text = GATED.replace("gate)", "gate: f32[*, d])")
    assert fired(compiled(text), "gated") == 2


def test_repeated_captures_must_be_equal(compiled):
    text = "rewrite twice { pattern { y = kt.add(x, x) } replace { y = kt.mul(x, x) } expect any }"
    assert fired(compiled(text), "twice") == 0


def test_names_of_replaced_values_live_on(compiled):
    graph = compiled(ADD_NORM + QKV).context.phases["step"].graph
    names = [node.name for node in graph.nodes]
    assert "layers_0_self_attn_q_proj" in names and "layers_0_post_attention_layernorm" in names
    assert len(names) == len(set(names))


PART = """
rewrite NAME {
  pattern { y = kt.linear(x, w) }
  where parameter(w) == "model.layers.0.self_attn.NAME.weight"
  replace { y, z = kt.split(kt.linear(x, w), SIZES) }
}
"""


def part(name, sizes):
    return PART.replace("NAME", name).replace("SIZES", sizes)


def test_a_result_of_another_shape_goes_on_to_its_readers(compiled):
    """Half of the rows of keys and values: one head instead of two, down to the cache."""
    half = "rows(w) // 2, rows(w) // 2"
    caches = compiled(part("k_proj", half) + part("v_proj", half)).context.caches
    assert [cache.heads for cache in caches] == [1, 2]


def test_a_reader_that_cannot_take_the_new_shape_is_named(compiled):
    with pytest.raises(KtError) as caught:
        compiled(part("k_proj", "rows(w) // 2 + 1, rows(w) // 2 - 1"))
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT504" and "is now float32[1, " in problem.notes[0]
    assert problem.notes[1].startswith("layers_0_self_attn_view")


def test_an_op_that_cannot_be_built_is_an_error_of_the_rewrite(compiled):
    with pytest.raises(KtError) as caught:
        compiled(part("k_proj", "rows(w), rows(w)"))
    assert caught.value.diagnostics[0].code == "KT506"


def test_a_dimension_of_the_step_has_no_value(compiled):
    text = """
    rewrite r {
      pattern { y = kt.silu(x: T[1, tokens, d]) }
      where tokens == 4
      replace { y = kt.gelu(x) }
    }
    """
    with pytest.raises(KtError) as caught:
        compiled(text)
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT109" and "`tokens` is a dimension that differs" in problem.message


def test_dimensions_and_formats_in_where_and_replacement(compiled, same_logits):
    """Gate and up, merged by hand with sizes from their types, then found again by literal sizes."""
    text = (
        GATED
        + """
    rewrite merge {
      pattern {
        g = kt.linear(x: T[1, tokens, d], wg: T[inner, d])
        u = kt.linear(x, wu: T[inner, d])
        y = kt.silu_mul(g, u)
      }
      where inner == 2 * d and format(wg) == f32 and same_format(wg, wu)
      replace {
        gu     = kt.linear(x, kt.concat(wg, wu, dim = 0))
        g1, u1 = kt.split(gu, inner, 2 * d)
        y      = kt.silu_mul(g1, u1)
      }
      expect layers
    }
    rewrite again {
      pattern { a, b = kt.split(x, 512, 512) }
      replace { a, b = kt.split(x, 512, 512) }
      expect COUNT
    }
    """
    )
    same_logits(text.replace("COUNT", "layers"))
    others = text.replace("kt.split(x, 512, 512) }\n      replace", "kt.split(x, 256, 768) }\n      replace")
    assert fired(compiled(others.replace("COUNT", "0")), "again") == 0

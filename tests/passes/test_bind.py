"""bind: last word wins, attribute by attribute, with the history kept."""

from __future__ import annotations

from ktc.grammar.values import DeviceRef, Symbol

TWO = "device host = cpu (memory = 1GiB)\ndevice far = cpu (memory = 1GiB)\n"


def test_a_place_covers_everything_inside_and_a_later_rule_overrides_it(compiled):
    context = compiled(
        TWO + "rule everything { match ** place host }\nrule second { match model.layers[1] place far }",
        bare=True,
    ).context
    write = context.attribute("model.layers.1.mlp.up_proj", "place")
    assert write.value == DeviceRef("far") and write.rule == "second" and write.site == "model.layers.1"
    assert write.overridden.rule == "everything" and write.overridden.overridden is None
    assert context.place_of("model.layers.0.mlp.up_proj") == "host"


def test_an_earlier_particular_rule_loses_against_a_later_general_one(compiled):
    text = TWO + "rule one { match lm_head place far expect any }\nrule everything { match ** place host }"
    context = compiled(text, bare=True).context
    assert context.place_of("lm_head") == "host"
    assert context.attribute("lm_head", "place").overridden.rule == "one"


def test_a_kernel_applies_to_the_matched_module_only(compiled):
    context = compiled("rule k { match model.layers[*].mlp.up_proj kernel torch.linear }").context
    assert context.attribute("model.layers.0.mlp.up_proj", "kernel").value == Symbol("torch.linear")
    assert context.attribute("model.layers.0.mlp.gate_proj", "kernel") is None
    assert context.attribute("model.layers.0.mlp", "kernel") is None


def test_within_one_rule_the_nearest_match_decides(compiled):
    text = (
        TWO
        + "rule all { match ** place host }\nrule split { match model.layers[0] or model.layers[0].mlp place far }"
    )
    assert compiled(text, bare=True).context.place_of("model.layers.0.mlp.up_proj") == "far"


def test_where_and_layer_expressions(compiled):
    text = TWO + (
        "rule all { match ** place host }\n"
        "rule last { match model.layers[*].mlp where layer >= layers - 1 place far expect 1 }"
    )
    context = compiled(text, bare=True).context
    assert context.matches["last"] == ("model.layers.1.mlp",)


def test_a_device_of_a_group_by_layer(compiled):
    text = (
        "device host = cpu (memory = 1GiB)\ndevice pair = cpu:0..1 (memory = 1GiB)\n"
        "rule all { match ** place host }\n"
        "rule split { match model.layers[*] place pair[layer * 2 // layers] expect layers }"
    )
    context = compiled(text, bare=True).context
    assert [context.place_of(f"model.layers.{i}") for i in range(2)] == ["pair[0]", "pair[1]"]


def test_on_a_phase_holds_in_that_phase_and_a_later_plain_word_ends_it(compiled):
    text = (
        TWO + "phase bulk = tokens >= 4\n"
        "rule everything { match ** place host }\n"
        "rule mlp { match model.layers[*].mlp place host on bulk { place far } expect any }\n"
        "rule second { match model.layers[1].mlp place host }\n"
    )
    context = compiled(text, bare=True).context
    assert context.place_of("model.layers.0.mlp", "bulk") == "far"
    assert context.place_of("model.layers.0.mlp") == "host"
    assert context.place_of("model.layers.1.mlp", "bulk") == "host"
    assert context.phase_names == ("bulk",)


def test_every_write_is_in_the_event_stream(compiled):
    context = compiled("rule q { match lm_head quant q8_0 }").context
    events = [e for e in context.events if e.kind == "applied" and e.subject == "lm_head"]
    assert {(e.data["attribute"], e.data["value"], e.data["rule"]) for e in events} == {
        ("place", "host", "everything"), ("quant", "q8_0", "q"),
    }  # fmt: skip
    assert all(e.data["line"] >= 1 for e in events)

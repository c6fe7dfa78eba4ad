"""What selectors match, and what is said of those that match nothing."""

from __future__ import annotations

import pytest
from ktc.grammar import load
from ktc.grammar.evaluate import EvaluationError
from ktc.grammar.selectors import compile_selector, explain, range_problems
from ktc.grammar.sites import Site
from ktc.grammar.values import SiteSet


def _sites() -> list[Site]:
    sites = [
        Site("", ("LlamaForCausalLM", "PreTrainedModel", "Module")),
        Site("model", ("LlamaModel", "Module")),
        Site("model.embed_tokens", ("Embedding", "Module")),
        Site("model.norm", ("LlamaRMSNorm", "Module")),
        Site("lm_head", ("Linear", "Module")),
    ]
    for i in range(12):
        layer = f"model.layers.{i}"
        sites += [
            Site(layer, ("LlamaDecoderLayer", "Module"), layer=i),
            Site(f"{layer}.self_attn", ("LlamaAttention", "Module"), layer=i),
            Site(f"{layer}.self_attn.q_proj", ("Linear", "Module"), layer=i),
            Site(f"{layer}.self_attn.o_proj", ("Linear", "Module"), layer=i),
            Site(f"{layer}.mlp", ("LlamaMLP", "Module"), layer=i),
            Site(f"{layer}.mlp.up_proj", ("Linear", "Module"), layer=i),
        ]
    return sites


SITES = _sites()
HEAD = "param few: int = 2\nlet attention = match model.layers[*].self_attn\n"


@pytest.mark.parametrize(
    ("selector", "count"),
    [
        ("**", 77),
        ("model", 1),
        ("model.**", 76 - 1),
        ("*", 2),
        ("model.layers[*]", 12),
        ("model.layers.*", 12),
        ("model.layers[3..5]", 3),
        ("model.layers[3..]", 9),
        ("model.layers[..3]", 4),
        ("model.layers[-1]", 1),
        ("model.layers[-2..].mlp", 2),
        ("model.layers[layers - few ..].mlp", 2),
        ("model.layers.7.mlp", 1),
        ("model.layers[7].mlp", 1),
        ("layers[*]", 0),
        ("**.layers[*]", 12),
        ("**.self_attn.*_proj", 24),
        ("**.*_proj", 36),
        ("**.q*", 12),
        ("**: Linear", 37),
        ("**: Module", 77),
        ("**.mlp.**: Linear", 12),
        ("@attention", 12),
        ("@attention and model.layers[0..1].**", 2),
        ("not **", 0),
        ("lm_head or model.norm", 2),
        ("**: Linear and not lm_head and not (**.mlp.** or **.o_proj)", 12),
        ('re"model\\.layers\\.[02]\\.mlp"', 2),
        ('re"mlp"', 0),
    ],
)
def test_matches(selector: str, count: int) -> None:
    rules = load(f"{HEAD}rule r {{ match {selector} quant none }}")
    assert len(compile_selector(rules.rules[0].selector, rules, layers=12).select(SITES)) == count


def test_a_set_named_in_an_expression_selects_too() -> None:
    rules = load(HEAD)
    assert len(compile_selector(SiteSet("attention"), rules).select(SITES)) == 12


def test_counting_from_the_end_needs_layers() -> None:
    rules = load("rule r { match a[-1] quant none }")
    with pytest.raises(EvaluationError, match="decoder layers"):
        compile_selector(rules.rules[0].selector, rules)


@pytest.mark.parametrize(
    ("selector", "code", "at", "said"),
    [
        (
            "model.layers[*].self_attn: Foo",
            "KT201",
            "Foo",
            "12 modules match the path; their class is LlamaAttention",
        ),
        ("model.layers[*].self_atn", "KT201", "self_atn", "did you mean `self_attn`?"),
        ("mdel.layers[*]", "KT201", "mdel", "did you mean `model`?"),
        ("model.layers.mlp", "KT201", "mlp", "inside there are only numbers: write `[*]`"),
        ("lm_head.weight", "KT201", "weight", "there is nothing inside"),
        ("**: Liner", "KT205", "Liner", "did you mean `Linear`?"),
        ("**: Conv9000d", "KT205", "Conv9000d", "classes:"),
        ("model.layers[20].mlp", "KT206", "20", "`layers` goes from 0 to 11"),
        ('re"mlp"', "KT201", 're"mlp"', "it matches inside 24 names"),
        ('re"mpl"', "KT201", 're"mpl"', "no name contains a match either"),
        ("@attention and **: Linear", "KT201", "@attention and **: Linear", "12 modules match"),
        ("not **", "KT201", "not **", "every module is excluded"),
    ],
)
def test_a_selector_that_matches_nothing_is_explained(selector: str, code: str, at: str, said: str) -> None:
    text = f"{HEAD}rule r {{ match {selector} quant none }}"
    rules = load(text)
    found = explain(rules.rules[0].selector, rules, SITES)
    assert found is not None and found.code == code
    span = found.labels[0].span
    assert text[span.start : span.end] == at
    words = [label.text for label in found.labels] + list(found.notes) + [fix.text for fix in found.fixes]
    assert any(said in word for word in words), words


def test_a_fix_put_into_the_text_makes_the_rule_match() -> None:
    text = "rule r { match model.layers[*].self_attn: Attn quant none }"
    rules = load(text)
    found = explain(rules.rules[0].selector, rules, SITES)
    assert found is not None
    (fix,) = found.fixes
    assert fix.span is not None
    mended = load(text[: fix.span.start] + fix.replacement + text[fix.span.end :])
    assert explain(mended.rules[0].selector, mended, SITES) is None


def test_a_range_that_matches_in_part_is_a_problem_too() -> None:
    rules = load("rule r { match model.layers[9..20] or model.layers[3..4] quant none }")
    selector = rules.rules[0].selector
    assert explain(selector, rules, SITES) is None
    (found,) = range_problems(selector, rules, SITES)
    assert found.code == "KT206" and "`9..20`" in found.message

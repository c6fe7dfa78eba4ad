"""The parser: trees with spans, several syntax errors a run, names that are keywords elsewhere."""

from __future__ import annotations

import contextlib

import pytest
from ktc.grammar import check, parse, tree
from ktc.grammar.evaluate import EvaluationError, evaluate, names_used
from ktc.grammar.format import format_text
from ktc.grammar.parser import parse_expression


def only(text: str) -> tree.Item:
    file, problems = parse(text)
    assert not problems
    (item,) = file.items
    return item


def test_spans_point_at_the_text() -> None:
    text = "# first\nrule head {\n  match lm_head\n  place gpus[-1]\n}\n"
    rule = only(text)
    assert isinstance(rule, tree.Rule)
    action = rule.actions[0]
    assert isinstance(action, tree.Action)
    assert text[action.value.span.start : action.value.span.end] == "gpus[-1]"
    assert (action.value.span.line, action.value.span.column) == (4, 9)
    assert (rule.span.line, rule.span.end_line, rule.span.end_column) == (2, 5, 2)


def test_keywords_are_names_where_no_keyword_can_stand() -> None:
    rule = only("rule rule { match model.rule.place place model on match { place kernel } }")
    assert isinstance(rule, tree.Rule)
    assert isinstance(rule.selector, tree.PathSelector)
    assert [segment.text for segment in rule.selector.segments] == ["model", "rule", "place"]
    rewrite = only(
        "rewrite r { pattern { rule = kt.silu(let) } replace { a = kt.silu(let) rule = kt.gelu(a) } }"
    )
    assert isinstance(rewrite, tree.Rewrite)
    assert [bind.names[0].id for bind in rewrite.replace] == ["a", "rule"]


def test_a_name_that_begins_with_a_keyword_is_a_name() -> None:
    let = only("let x = index in notable")
    assert isinstance(let, tree.Let)
    assert let.value == tree.Within(let.span, tree.Name(let.span, "index"), tree.Name(let.span, "notable"))


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("1 + 2 * 3", "1 + (2 * 3)"),
        ("1 - 2 - 3", "(1 - 2) - 3"),
        ("a or b and not c == d", "a or (b and (not (c == d)))"),
        ("-a * b", "(-a) * b"),
        ("a // b // c", "(a // b) // c"),
        ("layer * n // layers", "(layer * n) // layers"),
    ],
)
def test_operators_bind_as_in_python(text: str, same: str) -> None:
    assert parse_expression(text) == parse_expression(same)


def test_selector_ranges() -> None:
    rule = only("rule r { match a[3..17].b[..n].c[3..].d[*].e[-1].5 quant none }")
    assert isinstance(rule, tree.Rule) and isinstance(rule.selector, tree.PathSelector)
    indices = [segment.index for segment in rule.selector.segments]
    assert [type(index) for index in indices[:3]] == [tree.RangeExpr] * 3
    assert indices[3] == tree.Name(rule.span, "*")
    assert isinstance(indices[4], tree.Unary)
    assert rule.selector.segments[-1].text == "5"


def test_captures_attributes_and_computed_operands() -> None:
    rewrite = only(
        "rewrite r { pattern { q = kt.linear(x: T[*, 4], w) } "
        "replace { a, b = kt.split(kt.linear(x, w), rows(w), 3) q = kt.concat(a, b, dim = -1) } }"
    )
    assert isinstance(rewrite, tree.Rewrite)
    x = rewrite.pattern[0].call.operands[0]
    assert isinstance(x, tree.Capture) and x.type is not None
    assert x.type.dtype == "T" and x.type.dims == ("*", 4)
    split = rewrite.replace[0].call
    assert isinstance(split.operands[0], tree.OpCall)
    assert isinstance(split.operands[1], tree.Apply)
    assert split.operands[2] == tree.Number(split.span, 3)
    assert rewrite.replace[1].call.attributes[0].value == tree.Number(split.span, -1)


def test_every_item_with_an_error_is_reported_and_the_others_are_kept() -> None:
    file, problems = parse(
        "let a = \nrule one { match ** place }\nlet b = 2\nrule two {\n  match **\n  plce x\n}\nlet c = 3 3\n"
    )
    assert [type(item) for item in file.items] == [tree.Let]
    assert [problem.labels[0].span.line for problem in problems] == [2, 2, 6, 8]


def test_a_missing_brace_does_not_hide_the_next_item() -> None:
    file, problems = parse("rule one {\n  match **\n  place gpu\n\nrule two { match ** place gpu }\n")
    assert [problem.code for problem in problems] == ["KT006"]
    assert [item.name.id for item in file.items if isinstance(item, tree.Rule)] == ["two"]


def test_deep_nesting_is_refused_and_long_lists_are_not() -> None:
    assert [problem.code for problem in parse("let x = " + "(" * 9 + "-" * 500 + "1" + ")" * 9)[1]] == [
        "KT005"
    ]
    assert parse("let x = [" + ", ".join("1" for _ in range(5000)) + "]")[1] == []
    assert parse("let a = 1\n" * 3000)[1] == []


def test_an_error_never_names_a_terminal_of_the_grammar() -> None:
    for text in (
        "rule r { match a[",
        "let",
        "model X from",
        "rewrite r { pattern {",
        "device d = cpu:",
        "assert 1 +",
    ):
        (problem, *_) = parse(text)[1]
        words = problem.message + "".join(label.text for label in problem.labels)
        assert "ANON" not in words and "_RANGE" not in words and "LSQB" not in words


@pytest.mark.parametrize(
    "condition",
    [
        "not " * 190 + "true",
        "-" * 190 + "1 < 2",
        "[" * 190 + "]" * 190 + " == 1",
        "min(" * 95 + "1" + ")" * 95 + " < 2",
        " + ".join(["layer"] * 190) + " < 2",
        "x[" * 190 + "0" + "]" * 190 + " < 2",
    ],
)
def test_the_deepest_tree_that_is_read_can_be_walked(condition: str) -> None:
    text = f"rule r {{ match ** where {condition} quant none }}"
    file, problems = parse(text)
    assert not problems
    result = check(text, text=True)
    assert all(diagnostic.code in ("KT102", "KT105") for diagnostic in result.diagnostics)
    assert parse(format_text(text))[0] == file
    rule = file.items[0]
    assert isinstance(rule, tree.Rule)
    assert repr(rule) and hash(rule) == hash(rule) and names_used(rule.where) <= {"layer", "x", "min"}
    with contextlib.suppress(EvaluationError):
        evaluate(rule.where, {"layer": 1, "min": min})  # type: ignore[arg-type]

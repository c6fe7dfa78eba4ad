"""Values of expressions, and what cannot have one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ktc.grammar import load, tree
from ktc.grammar.evaluate import EvaluationError, applies, evaluate, expected_count, rule_env
from ktc.grammar.parser import parse_expression
from ktc.grammar.sites import Site
from ktc.grammar.values import Call, DeviceGroup, DeviceRef, SiteSet, Symbol

from ktc import _cpu

GROUP = DeviceGroup("gpus", tuple(DeviceRef("gpus", i) for i in range(4)))
ENV: dict[str, Any] = {
    "n": 3,
    "layers": 61,
    "gpus": GROUP,
    "dtype": Symbol("bf16"),
    "config": SimpleNamespace(num_experts=256, layer_types=["full", "sliding"], nested={"theta": 1e4}),
    "loads": lambda *args: [1, 2],
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * layers - 1", 121),
        ("7 // 2 + 7 % 4 - 1", 5),
        ("1 / 4", 0.25),
        ("-n * 2", -6),
        ("1.5GiB", 3 * 2**29),
        ("24GiB / 1GiB", 24.0),
        ("n == 3 and not n > 3", True),
        ("n < 2 or n in 3..5", True),
        ("n in [1, 2]", False),
        ('dtype == bf16 and dtype == "bfloat16" and dtype in [f16, bfloat16]', True),
        ("q4_k != q8_0", True),
        ("config.num_experts // 2", 128),
        ('config.layer_types[1] == "sliding"', True),
        ("config.nested.theta", 1e4),
        ("gpus[1]", DeviceRef("gpus", 1)),
        ("gpus[-1]", DeviceRef("gpus", 3)),
        ("gpus[2] in gpus", True),
        ("loads(3) <= 2", True),
        ("loads(3) < [5, 2]", False),
        ("q4_k", Symbol("q4_k")),
        (
            "cpu.linear(threads = n, isa = auto)",
            Call("cpu.linear", (), {"threads": 3, "isa": Symbol("auto")}),
        ),
        ("int4(group = 128)", Call("int4", (), {"group": 128})),
        ("@experts", SiteSet("experts")),
        ("[n, n + 1]", [3, 4]),
        ("true or 1 // 0 == 3", True),
    ],
)
def test_values(text: str, value: object) -> None:
    assert evaluate(parse_expression(text), ENV) == value


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("1 + true", "true", "`+` needs numbers, this is a bool"),
        ("n // (n - 3)", "n // (n - 3)", "division by zero"),
        ("gpus[4]", "4", "index 4 is out of range: `gpus` has 4 members"),
        ("gpus[-5]", "-5", "index -5 is out of range: `gpus` has 4 members"),
        ("n[0]", "n", "an int cannot be indexed"),
        ("not n", "n", "expected true or false, this is an int"),
        ("n and true", "n", "expected true or false, this is an int"),
        ('"a" < 3', '"a"', "`<` compares numbers, this is a string"),
        ("n in 3", "3", "`in` needs a list, a range, a group or a set, this is an int"),
        ("config.num_expert", "config.num_expert", "`config` has no field `num_expert`"),
        ("loads", "loads", "`loads` is a function"),
        ("n in 5..3", "5..3", "the range is empty: 5 is greater than 3"),
        ("1e200 * 1e200", "1e200 * 1e200", "number is too large"),
    ],
)
def test_errors_point_at_the_part_at_fault(text: str, at: str, message: str) -> None:
    with pytest.raises(EvaluationError) as error:
        evaluate(parse_expression(text), ENV)
    assert error.value.message == message
    assert text[error.value.span.start : error.value.span.end] == at


def test_unknown_names_are_errors_without_symbols() -> None:
    with pytest.raises(EvaluationError) as error:
        evaluate(parse_expression("layer_s"), ENV, symbols=False)
    assert error.value.hint == "did you mean `layers`?"
    assert evaluate(parse_expression("q4_k"), ENV, symbols={"q4_k"}) == Symbol("q4_k")


def test_a_function_that_refuses_its_arguments_is_an_evaluation_error() -> None:
    with pytest.raises(EvaluationError, match="takes numbers only"):
        evaluate(parse_expression('max("a", 3)'), load("").values())


def test_lets_parameters_and_devices_are_seen() -> None:
    rules = load(
        "param n: int = 4\nlet half = n // 2\nlet last = layers - half\ndevice host = cpu (threads = 3)\n",
        params={"n": "8"},
    )
    env = rules.values(layers=10)
    assert evaluate(parse_expression("last"), env) == 6
    assert evaluate(parse_expression("host"), env) == DeviceRef("host")
    assert evaluate(parse_expression("cores(host)"), env) == 3


@pytest.mark.parametrize(
    ("options", "quota", "threads"),
    [("", 8, 8), ("(numa = 1)", 8, 6), ("(numa = 1)", 5, 5), ("(numa = 2, threads = 7)", 8, 7)],
)
def test_cores_are_those_of_the_kernels(
    options: str, quota: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of 6 and 2 physical cores with two logical CPUs each, and a quota on the process."""
    nodes = [[[core, core + 8] for core in range(6)], [[6, 14], [7, 15]]]
    monkeypatch.setattr(_cpu, "topology", lambda: ([0, 1], nodes, 0.0, quota, ""))
    env = load(f"device host = cpu {options}\n").values()
    assert evaluate(parse_expression("cores(host)"), env) == threads


def test_a_condition_on_what_a_site_lacks_does_not_apply() -> None:
    rules = load("rule r { match ** where layer < 3 quant none }")
    where = rules.rules[0].where
    assert isinstance(where, tree.Binary)
    inside = rule_env(Site("model.layers.1", ("Layer",), layer=1), 4, None, rules)
    outside = rule_env(Site("model.norm", ("Norm",)), 4, None, rules)
    assert applies(where, inside)
    assert not applies(where, outside)
    with pytest.raises(EvaluationError, match="the module lies in no layer"):
        evaluate(where, outside)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", (1, None)),
        ("expect any", (0, None)),
        ("expect n", (3, 3)),
        ("expect 2 * layers - 1 ..", (121, None)),
        ("expect ..4", (0, 4)),
        ("expect 4 / 2 .. 8", (2, 8)),
    ],
)
def test_expected_counts(text: str, count: tuple[int, int | None]) -> None:
    rule = load(f"param n: int = 3\nrule r {{ match ** quant none {text} }}").rules[0]
    assert expected_count(rule.expect, {"n": 3, "layers": 61}) == count


def test_a_count_is_whole() -> None:
    rule = load("rule r { match ** quant none expect 1 / 2 .. }").rules[0]
    with pytest.raises(EvaluationError, match="whole number"):
        expected_count(rule.expect, {})

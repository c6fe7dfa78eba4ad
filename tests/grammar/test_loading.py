"""Loading programs: includes, parameters, devices, and what `Rules` holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from ktc.grammar import KtError, as_rules, check, load, tree
from ktc.grammar.loading import is_text, std_files
from ktc.grammar.values import DeviceGroup, DeviceRef, Symbol


def test_a_program_in_full() -> None:
    rules = load(
        'model LlamaForCausalLM from "m"\n'
        'param context: int = 8192 "tokens"\n'
        "device gpus = cuda:1..3 (memory = 24GiB, reserve = 1.5GiB)\n"
        "device host = cpu (threads = 4, numa = 2)\n"
        "phase bulk = tokens >= 512\n"
        "let experts = match **.experts\n"
        "rule all { match ** place host on bulk { place gpus[0] } }\n"
        "rule cache { match **.self_attn cache paged(tokens = context) }\n"
        'assert bytes(@experts) < memory(host), "why"\n',
        params={"context": "4 * 1024"},
    )
    assert rules.model is not None and rules.model.class_name.id == "LlamaForCausalLM"
    assert rules.params["context"].value == 4096 and rules.params["context"].given
    gpus = rules.devices["gpus"]
    assert (gpus.hardware, gpus.first, gpus.last) == ("cuda", 1, 3)
    assert (gpus.memory, gpus.reserve) == (24 * 2**30, 3 * 2**29)
    assert gpus.value == DeviceGroup("gpus", tuple(DeviceRef("gpus", i) for i in range(3)))
    assert (rules.devices["host"].threads, rules.devices["host"].numa) == (4, 2)
    assert list(rules.phases) == ["bulk"] and list(rules.sets) == ["experts"]
    assert [rule.name.id for rule in rules.rules] == ["all", "cache"]
    assert rules.asserts[0].hint is not None


def test_includes_are_merged_in_order_and_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "sets.kt").write_text("let experts = match **.experts\n")
    (tmp_path / "base.kt").write_text('include "deep/sets.kt"\nrule a { match @experts quant none }\n')
    main = tmp_path / "main.kt"
    main.write_text(
        'include "base.kt"\ninclude "deep/sets.kt"\ninclude "std/elementwise.kt"\n'
        "rule b { match ** quant none }\n"
    )
    rules = load(main)
    assert [rule.name.id for rule in rules.rules] == ["a", "b"]
    assert [Path(file).name for file in rules.sources] == ["main.kt", "base.kt", "sets.kt", "elementwise.kt"]
    assert [rewrite.name.id for rewrite in rules.rewrites] == ["add_rms_norm", "silu_mul", "gelu_mul"]
    assert rules.rules[0].span.file.endswith("base.kt")


def test_an_error_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "part.kt").write_text("rule a { match ** plce gpu }\n")
    (tmp_path / "main.kt").write_text('include "part.kt"\n')
    result = check(tmp_path / "main.kt")
    assert [Path(d.labels[0].span.file).name for d in result.diagnostics] == ["part.kt"]


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a" * (4 * 2**20 + 1), b"let a = 1\x00\n"])
def test_files_that_are_no_programs_are_diagnostics(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.kt"
    path.write_bytes(text)
    assert check(path).errors


def test_a_missing_file_and_a_folder_are_diagnostics(tmp_path: Path) -> None:
    assert [d.code for d in check(tmp_path / "none.kt").diagnostics] == ["KT009"]
    assert [d.code for d in check(tmp_path).diagnostics] == ["KT009"]


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "dos.kt"
    path.write_bytes(b"let a = 1\r\nlet b = a +\r\n")
    (problem,) = check(path).diagnostics
    assert problem.labels[0].span.line == 3


def test_load_raises_everything_at_once_and_shows_the_lines() -> None:
    with pytest.raises(KtError) as error:
        load("let a = \nlet b = \n")
    assert len(error.value.diagnostics) == 2
    assert "2 | let b" in str(error.value) and "^" in str(error.value)


def test_what_was_not_read_is_not_reported_missing() -> None:
    result = check("let experts = match **.experts[\nrule r { match @experts quant none }\n")
    assert [d.code for d in result.diagnostics] == ["KT006"]


def test_rules_paths_and_texts() -> None:
    assert is_text("let a = 1\n") and is_text("rule a { match ** }") and not is_text("rules/model.kt")
    rules = load("let a = 1\n")
    assert as_rules(rules) is rules
    assert as_rules("let a = 1\n").lets.keys() == {"a"}
    with pytest.raises(TypeError):
        as_rules(rules, params={"a": 1})


@pytest.mark.parametrize(
    ("kind", "written", "value"),
    [
        ("int", "8", 8),
        ("float", "1", 1.0),
        ("bool", "false", False),
        ("size", "2MiB", 2**21),
        ("str", "a b", "a b"),
        ("int", -3, -3),
    ],
)
def test_given_parameters_are_read_as_their_type(kind: str, written: object, value: object) -> None:
    default = {"int": "1", "float": "0.5", "bool": "true", "size": "1KiB", "str": '"x"'}[kind]
    rules = load(f"param p: {kind} = {default}\n", params={"p": written})
    assert rules.params["p"].value == value
    assert type(rules.params["p"].value) is type(value)


@pytest.mark.parametrize(
    ("kind", "written"), [("int", "1.5"), ("int", "true"), ("bool", "1"), ("int", 2.5), ("int", "n")]
)
def test_a_value_of_another_type_is_refused(kind: str, written: object) -> None:
    default = {"int": "1", "bool": "true"}[kind]
    with pytest.raises(KtError) as error:
        load(f"param p: {kind} = {default}\n", params={"p": written})
    assert [d.code for d in error.value.diagnostics] == ["KT106"]


@pytest.mark.parametrize("name", std_files())
def test_the_std_libraries_check_cleanly(name: str, tmp_path: Path) -> None:
    main = tmp_path / "main.kt"
    main.write_text(f'include "{name}"\n')
    result = check(main)
    assert result.diagnostics == () and result.rules is not None


@pytest.mark.parametrize("name", std_files())
def test_the_std_libraries_are_formatted(name: str) -> None:
    from ktc.grammar.format import format_text

    text = load(f'include "{name}"\n').sources[name]
    assert format_text(text) == text


def test_rewrites_of_libraries_may_fire_never() -> None:
    for name in std_files():
        for rewrite in load(f'include "{name}"\n').rewrites:
            assert rewrite.expect == tree.Expect(rewrite.span, True, None)


def test_a_parameter_may_be_the_name_of_a_format() -> None:
    text = "param weights: name = q4_k\nrule a { match ** quant weights }\n"
    assert load(text).params["weights"].value == Symbol("q4_k")
    assert load(text, params={"weights": "q8_0"}).params["weights"].value == Symbol("q8_0")
    with pytest.raises(KtError, match="KT604"):
        load(text, params={"weights": "q9"})

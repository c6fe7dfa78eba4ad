"""Rule files as text: positions, what is malformed, and files that are made to do harm."""

from __future__ import annotations

import pytest
from ktc.grammar.diagnostics import Diagnostic, KtError

from ktc.import_yaml.reading import LARGEST, MOST_VALUES, RuleFile, read_rules

GOOD = """\
# a comment
- match:
    name: "^model\\\\.layers\\\\.(0|1)\\\\."
    class: torch.nn.Linear
  replace:
    class: "default"
    kwargs:
      generate_device: "cuda:1"
      transfer_map:
        30: "cuda:1"
  recursive: False

- match: {class: torch.nn.Embedding}
  replace: {}
"""


def read(text: str) -> RuleFile:
    return read_rules(text.encode(), "rules.yaml")


def refused(data: bytes | str) -> Diagnostic:
    """The one error with which a file is refused."""
    with pytest.raises(KtError) as caught:
        read_rules(data if isinstance(data, bytes) else data.encode(), "rules.yaml")
    (found,) = caught.value.diagnostics
    assert found.code == "KT701" and found.labels[0].span.file == "rules.yaml"
    return found


def test_a_rule_is_read_with_the_places_of_its_parts() -> None:
    file = read(GOOD)
    first, second = file.rules
    assert file.count == 2 and file.diagnostics == ()
    assert first.pattern is not None and first.pattern.pattern == r"^model\.layers\.(0|1)\."
    assert (first.match_class, first.replace_class, first.recursive) == ("torch.nn.Linear", "default", False)
    assert first.kwarg("generate_device") == "cuda:1" and first.kwarg("transfer_map") == {30: "cuda:1"}
    assert (first.line, second.line) == (2, 13)
    places = {name: (span.line, span.column) for name, span in first.spans.items()}
    assert places == {"name": (3, 11), "class": (4, 12), "replace": (6, 12), "recursive": (11, 14)}
    assert (first.kwargs["generate_device"].key_span.line, first.kwargs["generate_device"].span.column) == (
        8,
        24,
    )
    assert second.pattern is None and second.recursive and second.kwargs == {}


def test_anchors_and_merge_keys_are_read_as_yaml_means_them() -> None:
    text = """\
- match: {name: a}
  replace: {class: default, kwargs: &gpu {generate_device: "cuda:0", prefill_device: "cuda:0"}}
- match: {name: b}
  replace:
    class: default
    kwargs: {<<: *gpu, generate_device: cpu}
"""
    file = read(text)
    assert [rule.kwarg("generate_device") for rule in file.rules] == ["cuda:0", "cpu"]
    assert file.rules[1].kwarg("prefill_device") == "cuda:0" and file.diagnostics == ()


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ("- replace: {class: default}\n", "the rule has no `match`", 1, 3),
        ("- match: {name: a}\n", "the rule has no `replace`", 1, 3),
        ("- match: {}\n  replace: {}\n", "neither `name` nor `class`", 1, 10),
        ("- 7\n", "a rule is a number, not a mapping", 1, 3),
        ("- match: [a]\n  replace: {}\n", "`match` is a list", 1, 10),
        ("- match: {name: 12}\n  replace: {}\n", "`match.name` is a number", 1, 17),
        ("- match: {class: }\n  replace: {}\n", "`match.class` is empty", 1, 17),
        ("- match: {name: a}\n  replace:\n", "`replace` is empty", 2, 11),
        ("- match: {name: a}\n  replace: {kwargs: 3}\n", "`kwargs` is a number", 2, 21),
        ("- match: {name: !!python/object/apply:os.system [ls]}\n  replace: {}\n", "the value cannot be read", 1, 17),
        ('- match: {name: !!int ""}\n  replace: {}\n', "the value cannot be read", 1, 17),
        ("- match: {name: a}\n  replace: {kwargs: {a: 2024-99-99}}\n", "the value cannot be read", 2, 25),
    ],
)  # fmt: skip
def test_a_rule_that_stops_ktransformers_is_left_out(text: str, message: str, line: int, column: int) -> None:
    file = read(text + "- match: {name: fine}\n  replace: {}\n")
    assert len(file.rules) == 1 and file.count == 2
    (found,) = file.diagnostics
    assert found.code == "KT702" and message in found.message
    assert (found.labels[0].span.line, found.labels[0].span.column) == (line, column)


@pytest.mark.parametrize("pattern", [r"([0-9]|1[0-5)\.", "*a", "(?P<x", "a" * 3000])
def test_a_pattern_that_does_not_compile_is_reported_at_its_place(pattern: str) -> None:
    file = read(f"- match: {{name: '{pattern}'}}\n  replace: {{}}\n- match: {{name: b}}\n  replace: {{}}\n")
    assert [rule.number for rule in file.rules] == [1]
    (found,) = file.diagnostics
    assert found.code in ("KT702", "KT703") and found.labels[0].span.line == 1


def test_what_is_passed_over_in_silence_is_said() -> None:
    file = read(
        "- match: {name: a, clas: b}\n"
        "  replace: {class: default, kwarg: {a: 1}}\n"
        '  recursive: "False"\n'
        "  replace: {class: default}\n"
    )
    said = [(d.message, d.labels[0].span.line) for d in file.diagnostics]
    assert ("`clas` means nothing in `match`", 1) in said
    assert ("`replace` stands twice in a rule", 4) in said
    assert ("`recursive` is a text, not true or false", 3) in said
    assert file.rules[0].recursive
    near = [fix.replacement for d in file.diagnostics for fix in d.fixes if "clas" in d.message]
    assert near == ["class"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"[]\n", "holds no list of rules"),
        (b"rules:\n- match: {name: a}\n", "holds no list of rules"),
        (b"just a text\n", "holds no list of rules"),
        (b"- match:\n\tname: a\n", "is not YAML"),
        (b'- match: {name: "\\."}\n', "is not YAML"),
        (b"- match: {name: a\n", "is not YAML"),
        (b"- a: 1\n---\n- b: 2\n", "is not YAML"),
        (b"- match: {name: \x00}\n", "is not YAML"),
        (b"- match: {name: *nowhere}\n", "is not YAML"),
        (b"# caf\xe9\n- match: {name: a}\n", "is not UTF-8 text: byte 5, on line 1, is 0xe9"),
        ("- match: {name: a}\n".encode("utf-16"), "is not UTF-8"),
        (b"-" * (LARGEST + 1), "is larger than"),
        (b"[" * 5000, "nested deeper"),
        (b"- " * 60 + b"a\n", "nested deeper"),
        (b"- &a [*a]\n", "an alias that holds itself"),
    ],
)  # fmt: skip
def test_what_is_no_rule_file_is_refused(data: bytes, message: str) -> None:
    assert message in refused(data).message


def test_a_tab_is_named() -> None:
    found = refused("- match:\n\tname: a\n")
    assert found.labels[0].span.line == 2 and "tabs" in found.notes[0]


def test_aliases_of_aliases_are_not_written_out() -> None:
    levels = ["- &l0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    levels += [f"- &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert f"more than {MOST_VALUES:,} values" in refused("\n".join(levels)).message


def test_line_ends_and_byte_order_marks_do_not_matter() -> None:
    windows = b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()
    found, plain = read_rules(windows, "rules.yaml"), read(GOOD)
    assert [(r.line, r.spans) for r in found.rules] == [(r.line, r.spans) for r in plain.rules]

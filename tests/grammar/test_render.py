"""How diagnostics look."""

from __future__ import annotations

import io

import pytest
from ktc.grammar import Diagnostic, Fix, Label, Severity
from ktc.grammar.render import print_diagnostics, render, to_json, use_color
from ktc.grammar.source import Source

TEXT = "first line\n\tmatch  model.gate: MoEGate\n" + "\n" * 8 + "last line\n"


def label(word: str, text: str = "") -> Label:
    source = Source("v3.kt", TEXT)
    start = TEXT.index(word)
    return Label(source.span(start, start + len(word)), text)


def test_one_label_with_a_note_and_help() -> None:
    found = Diagnostic(
        "KT201",
        "rule matches nothing",
        (label("MoEGate", "no module here has this class"),),
        ("58 modules match the path",),
        (Fix("write `model.gate: Router`"),),
    )
    assert render(found, {"v3.kt": TEXT}) == (
        "error[KT201]: rule matches nothing\n"
        " --> v3.kt:2:21\n"
        "2 |  match  model.gate: MoEGate\n"
        "  |                     ^^^^^^^ no module here has this class\n"
        "  = note: 58 modules match the path\n"
        "  = help: write `model.gate: Router`\n"
    )


def test_labels_far_apart_and_on_one_line() -> None:
    found = Diagnostic(
        "KT101", "twice", (label("gate", "this"), label("MoEGate", "and this"), label("last", "here"))
    )
    assert render(found, {"v3.kt": TEXT}) == (
        "error[KT101]: twice\n"
        "  --> v3.kt:2:15\n"
        "   |\n"
        " 2 |  match  model.gate: MoEGate\n"
        "   |                     ------- and this\n"
        "   |               ^^^^ this\n"
        "...\n"
        "11 | last line\n"
        "   | ---- here\n"
    )


def test_a_span_of_several_lines_is_marked_to_the_end_of_its_first() -> None:
    source = Source("a.kt", "rule a {\n}\n")
    found = Diagnostic("KT114", "empty", (Label(source.span(5, 10)),))
    assert render(found, {"a.kt": source.text}).splitlines()[-1] == "  |      ^^^"


def test_a_label_into_a_file_that_is_not_at_hand_names_it() -> None:
    assert render(Diagnostic("KT009", "no", (label("gate"),)), {}) == "error[KT009]: no\n --> v3.kt:2:15\n"


def test_colour_only_on_a_terminal_and_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert use_color(Terminal()) and not use_color(io.StringIO())
    out = Terminal()
    print_diagnostics([Diagnostic("KT009", "no")], {}, out)
    assert "\033[1;31merror[KT009]\033[0m" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_color(Terminal())


def test_the_last_line_counts() -> None:
    out = io.StringIO()
    warning = Diagnostic("KT190", "unused", severity=Severity.WARNING)
    print_diagnostics([Diagnostic("KT009", "no"), warning], {}, out)
    assert out.getvalue().splitlines()[-1] == "1 error, 1 warning; `ktc help KT009` explains the first"


def test_json_has_every_field() -> None:
    found = to_json(
        Diagnostic("KT201", "dead", (label("gate", "x"),), ("n",), (Fix("f", label("gate").span, "r"),))
    )
    assert found["labels"][0]["span"]["column"] == 15
    assert found["fixes"][0]["replacement"] == "r" and found["severity"] == "error"


def test_of_a_very_long_line_only_a_part_is_shown() -> None:
    source = Source("a.kt", "let a = [" + "1, " * 400 + "oops" + ", 1" * 400 + "]")
    start = source.text.index("oops")
    lines = render(
        Diagnostic("KT102", "no", (Label(source.span(start, start + 4)),)), {"a.kt": source.text}
    ).split("\n")
    assert lines[2].startswith("1 | …") and lines[2].endswith("…") and len(lines[2]) < 170
    assert lines[3].index("^") == lines[2].index("oops")


def test_control_characters_do_not_reach_the_terminal() -> None:
    source = Source("a.kt", "let \x1b[31m漢字 = x")
    shown = render(Diagnostic("KT003", "bad \x1b[0m", (Label(source.span(13, 14)),)), {"a.kt": source.text})
    assert "\x1b" not in shown
    assert shown.splitlines()[3] == "  | " + " " * len("let ?[31m....") + "  ^"

"""Formatting keeps the tree and the comments, and formatting again changes nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ktc.grammar import KtError, parse
from ktc.grammar.format import format_text
from programs import programs

_TOKENS = re.compile(r're"[^"\n]*"|"[^"\n]*"|(#[^\n]*)')


def comments(text: str) -> list[str]:
    return sorted(match.group(1).rstrip() for match in _TOKENS.finditer(text) if match.group(1))


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs)
def test_formatting_keeps_the_tree_and_the_comments(text: str) -> None:
    file, problems = parse(text)
    assert not problems, (text, problems)
    formatted = format_text(text)
    again, problems = parse(formatted)
    assert not problems, formatted
    assert again.items == file.items
    assert comments(formatted) == comments(text)
    assert format_text(formatted) == formatted


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='rule{}()[]"#:=.*@ \nmatch place x3\t\0é', max_size=60))
def test_any_text_gives_a_tree_or_diagnostics_and_never_an_exception(text: str) -> None:
    file, problems = parse(text)
    if not problems:
        assert parse(format_text(text))[0].items == file.items


def test_clauses_stand_in_a_column_and_one_line_blocks_stay() -> None:
    text = """\
rule a { match ** place gpu }
rule  b{ match x or
  y  # both
 where layer<3 on bulk { place gpu } expect 2 * layers - 1 ..}
"""
    assert (
        format_text(text)
        == """\
rule a { match ** place gpu }

rule b {
  match  x or y  # both
  where  layer < 3
  on bulk { place gpu }
  expect 2 * layers - 1 ..
}
"""
    )


def test_a_long_call_is_broken_at_its_arguments() -> None:
    name = "a_rather_long_name"
    text = f"let x = min({', '.join([name] * 8)})\n"
    formatted = format_text(text)
    assert formatted == "let x = min(\n" + f"  {name},\n" * 8 + ")\n"
    assert format_text(formatted) == formatted


def test_comments_inside_an_expression_move_before_it() -> None:
    assert format_text("let a = 1 + # why\n  2\n") == "# why\nlet a = 1 + 2\n"


def test_an_empty_file_stays_empty_and_a_comment_stays() -> None:
    assert format_text("") == ""
    assert format_text("\n\n# only this\n") == "# only this\n"


def test_a_syntax_error_is_raised_with_all_diagnostics() -> None:
    with pytest.raises(KtError) as error:
        format_text("rul a {}\nlet b = \nlet c = 1\n")
    assert [diagnostic.code for diagnostic in error.value.diagnostics] == ["KT001", "KT001"]

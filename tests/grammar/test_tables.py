"""The grammar is LALR(1) without collisions, and the tables shipped are those it gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ktc.grammar import generate, parse
from ktc.grammar.build import Builder
from ktc.grammar.lalr import load_tables
from ktc.grammar.loading import std_files


def test_the_grammar_is_strictly_lalr_and_its_terminals_do_not_collide() -> None:
    generate.build_lark(strict=True)


def test_the_shipped_tables_are_those_of_the_grammar() -> None:
    assert json.loads(generate.TABLES.read_text("utf-8")) == json.loads(json.dumps(generate.tables()))


def test_no_terminal_is_anonymous() -> None:
    assert not [name for name in generate.tables()["terminals"] if "ANON" in name]


def test_the_builder_has_a_method_for_every_rule() -> None:
    callbacks = {callback for _, callback, *_ in load_tables().rules} - {"", "="}
    assert callbacks <= set(dir(Builder))


def test_the_editor_grammar_has_the_keywords_of_the_language() -> None:
    path = Path(generate.GRAMMAR).parent / "editor" / "kt.tmLanguage.json"
    repository = json.loads(path.read_text("utf-8"))["repository"]
    entries = [*repository["keyword"]["patterns"], repository["constant"]]
    words = {
        word
        for entry in entries
        for word in re.findall(r"[a-z]+", re.search(r"\)\((.*?)\)\(", entry["match"])[1])
    }
    assert words == set(load_tables().lexer.words)


def test_lark_itself_reads_the_libraries_as_the_shipped_parser_does() -> None:
    lark = generate.build_lark()
    for name in std_files():
        text = (generate.GRAMMAR.parent / name).read_text("utf-8")
        file, problems = parse(text)
        assert not problems
        assert len(lark.parse(text, start="start").children) == len(file.items)

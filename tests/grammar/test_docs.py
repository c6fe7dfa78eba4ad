"""Every program in the documentation checks cleanly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ktc.grammar import check
from ktc.grammar.functions import FUNCTIONS
from ktc.grammar.loading import std_files
from ktc.grammar.ops import OPS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "language.md", DOCS / "first-rules.md"]
BLOCKS = [
    (page.name, block)
    for page in PAGES
    for block in re.findall(r"^```kt\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(BLOCKS)])
def test_an_example_checks_cleanly(page: str, block: str) -> None:
    assert [d.message for d in check(block, text=True).diagnostics if d.code != "KT190"] == []


def test_the_reference_names_every_function_op_and_library() -> None:
    text = (DOCS / "language.md").read_text("utf-8")
    words = set(re.findall(r"[\w./]+", text))
    assert set(FUNCTIONS) | set(OPS) | set(std_files()) <= words

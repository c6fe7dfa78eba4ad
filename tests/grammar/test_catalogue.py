"""Every code has a page whose examples are what they say; every code that the sources use has a page."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from ktc.grammar import check
from ktc.grammar.catalogue import codes, explanation

EXAMPLES = re.compile(r"^(Wrong|Right):\n\n```kt\n(.*?)\n```", re.DOTALL | re.MULTILINE)
# Without a model these can say nothing: the compiler finds them.
LATER = frozenset(
    {"KT123", "KT304", "KT305", "KT401", "KT402", "KT404", "KT503", "KT507", "KT605", "KT607"}
) | {f"KT{number}" for number in (201, 202, 203, 204, 205, 206, 301)}


def examples(code: str) -> dict[str, str]:
    return {which: text for which, text in EXAMPLES.findall(explanation(code) or "")}


@pytest.mark.parametrize("code", codes())
def test_a_page_has_a_title_and_an_explanation(code: str) -> None:
    page = explanation(code) or ""
    title, blank, text = page.split("\n", 2)
    assert title.startswith(f"# {code}: ") and blank == "" and len(text.split()) > 8


@pytest.mark.parametrize("code", [code for code in codes() if examples(code)])
def test_the_wrong_example_is_wrong_for_this_reason_and_the_right_one_right(code: str) -> None:
    found = examples(code)
    wrong, right = check(found["Wrong"], text=True), check(found["Right"], text=True)
    wrong_codes = {d.code for d in wrong.diagnostics} - ({"KT190"} - {code})
    assert wrong_codes == (set() if code in LATER else {code})
    assert {d.code for d in right.diagnostics} <= {"KT190"} - {code}


@pytest.mark.parametrize("package", ["grammar", "passes", "backends", "cli", "runtime", "weights"])
def test_every_code_in_the_sources_has_a_page(package: str) -> None:
    spec = find_spec(f"ktc.{package}")
    assert spec is not None and spec.submodule_search_locations
    used = {
        code
        for folder in spec.submodule_search_locations
        for path in Path(folder).rglob("*.py")
        for code in re.findall(r'"(KT\d{3})"', path.read_text("utf-8"))
    }
    assert used <= codes().keys()


def test_codes_are_found_in_any_case_and_nothing_else_is() -> None:
    assert explanation("kt201") == explanation("KT201")
    assert explanation("KT999") is None
    assert explanation("../README") is None

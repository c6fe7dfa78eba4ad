"""Every program of this folder gets exactly the diagnostics in the text beside it."""

from __future__ import annotations

import os

import pytest
from cases import FOLDER, Case, all_cases, run_case
from ktc.grammar.catalogue import codes


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.path.stem)
def test_case(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    diagnostics, text = run_case(case)
    assert case.code in {diagnostic.code for diagnostic in diagnostics}
    assert {diagnostic.code for diagnostic in diagnostics} <= codes().keys()
    assert case.ok == all(diagnostic.severity == "warning" for diagnostic in diagnostics)
    if os.environ.get("KTC_BLESS"):
        case.expected.write_text(text, "utf-8")
    assert text == case.expected.read_text("utf-8")


def test_every_expected_text_has_its_case() -> None:
    texts = {path.stem for path in FOLDER.glob("kt*.txt")}
    assert texts == {case.path.stem for case in all_cases()}

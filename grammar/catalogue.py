"""The catalogue of diagnostics: `codes/KTnnn.md`, one page a code, its first line the title."""

from __future__ import annotations

import os
import re

_CODE = re.compile(r"KT\d{3}")
_FOLDER = os.path.join(os.path.dirname(__file__), "codes")


def explanation(code: str) -> str | None:
    """The page of a code (in any case), or None if there is no such code."""
    name = code.upper()
    path = os.path.join(_FOLDER, f"{name}.md")
    if not _CODE.fullmatch(name) or not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        return file.read().rstrip("\n")


def codes() -> dict[str, str]:
    """Every code and its title, in order."""
    found = {}
    for name in sorted(os.listdir(_FOLDER)):
        code = name.removesuffix(".md")
        if _CODE.fullmatch(code):
            page = explanation(code) or ""
            found[code] = page.split("\n", 1)[0].partition(": ")[2]
    return found

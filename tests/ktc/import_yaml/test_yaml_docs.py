"""docs/import-yaml.md: its rule file gives the program and the messages that the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ktc.cli import main

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "import-yaml.md").read_text("utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_example_is_what_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rules.yaml").write_text(blocks("yaml")[0])
    command = blocks("sh")[1].replace("examples/", f"{ROOT}/examples/").split()
    monkeypatch.chdir(tmp_path)
    assert command[0] == "ktc" and main(command[1:]) == 0
    said = capsys.readouterr().err
    assert (tmp_path / "v3.kt").read_text("utf-8") == blocks("kt")[0]
    for message in blocks("text")[0].strip().split("\n\n"):
        assert message in said
    assert "\n7 warnings; " in said
    assert main(["check", "v3.kt"]) == 0 and main(["fmt", "--check", "v3.kt"]) == 0

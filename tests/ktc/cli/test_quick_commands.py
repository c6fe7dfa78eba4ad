"""`ktc check`, `ktc fmt` and `ktc help`: exit codes, output, and that they load no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ktc.cli import main

GOOD = "device host = cpu\n\nrule all { match ** place host }\n"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.kt"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.kt"
    path.write_text("device host = cpu\nrule all { match ** place hots }\n")
    return path


def test_check_is_silent_about_a_good_file(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(good)]) == 0
    assert capsys.readouterr() == ("", "")


def test_check_shows_errors_and_exits_with_1(
    good: Path, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(good), str(bad)]) == 1
    assert "error[KT302]: unknown device `hots`" in capsys.readouterr().err


def test_check_as_json(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", str(bad)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and found["files"][0]["diagnostics"][0]["code"] == "KT302"


def test_check_sets_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.kt"
    path.write_text("param n: int = 3\n")
    assert main(["check", str(path), "-D", "n=4"]) == 0
    assert main(["check", str(path), "-Dn=x"]) == 1
    assert main(["check", str(path), "-D", "n"]) == 2


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2
    assert main(["fmt", "--nothing"]) == 2
    assert main(["help", "KT999"]) == 2


def test_fmt_writes_checks_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.kt"
    path.write_text("let  a=1\n")
    assert main(["fmt", "--check", str(path)]) == 1
    assert main(["fmt", "--stdout", str(path)]) == 0
    assert capsys.readouterr().out == "let a = 1\n"
    assert path.read_text() == "let  a=1\n"
    assert main(["fmt", str(path)]) == 0
    assert path.read_text() == "let a = 1\n"
    assert main(["fmt", "--check", str(path)]) == 0


def test_fmt_leaves_a_file_with_errors_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.kt"
    path.write_text("let  a=\n")
    assert main(["fmt", str(path)]) == 1
    assert path.read_text() == "let  a=\n" and "KT001" in capsys.readouterr().err
    assert main(["fmt", str(tmp_path / "none.kt")]) == 1


def test_help_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "kt201"]) == 0
    assert capsys.readouterr().out.startswith("# KT201: a rule matches nothing")
    assert main(["help", "--list"]) == 0
    assert "KT503  " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "fmt", "help"])
def test_no_heavy_package_is_imported(command: str, good: Path) -> None:
    argument = "KT201" if command == "help" else str(good)
    program = (
        "import sys; from ktc.cli import main; code = main(sys.argv[1:]); "
        "print([m for m in ('torch', 'transformers', 'numpy', 'lark', 'rich', 'typer') if m in sys.modules], "
        "file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command, argument], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"

"""`ktc fmt FILE...`: rewrites files in the one layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ktc.cli.options import parse_arguments


def main_fmt(argv: Sequence[str]) -> int:
    """Formats files in place; with `--check` only says which would change, and exits with 1 if any would."""
    parser = argparse.ArgumentParser(prog="ktc fmt", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .kt file, or - for standard input")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a file would change"
    )
    parser.add_argument(
        "--stdout", action="store_true", help="print the formatted text instead of writing it"
    )
    arguments = parse_arguments(parser, argv)
    if isinstance(arguments, int):
        return arguments
    code = 0
    for file in arguments.files:
        code = max(code, _format_file(file, arguments.check, arguments.stdout or file == "-"))
    return code


def _format_file(file: str, check: bool, stdout: bool) -> int:
    from ktc.grammar.diagnostics import KtError
    from ktc.grammar.format import format_text

    try:
        text = _read(file)
    except (OSError, UnicodeDecodeError) as error:
        print(f"ktc fmt: cannot read {file}: {error}", file=sys.stderr)
        return 1
    try:
        formatted = format_text(text, file)
    except KtError as error:
        from ktc.grammar.render import print_diagnostics

        print_diagnostics(error.diagnostics, error.sources)
        return 1
    if check:
        if formatted != text:
            print(f"{file} is not formatted", file=sys.stderr)
        return int(formatted != text)
    if stdout:
        sys.stdout.write(formatted)
    elif formatted != text:
        try:
            _write(file, formatted)
        except OSError as error:
            print(f"ktc fmt: cannot write {file}: {error}", file=sys.stderr)
            return 1
    return 0


def _read(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    with open(file, encoding="utf-8", newline="") as stream:
        return stream.read()


def _write(file: str, text: str) -> None:
    with open(file, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)

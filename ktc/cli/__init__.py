"""The command `ktc`: `check`, `fmt` and `help` answer at once, without torch; the rest is `ktc.cli.app`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 well, 1 errors found, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command == "check":
        from ktc.cli.check import main_check

        return main_check(arguments[1:])
    if command == "fmt":
        from ktc.cli.fmt import main_fmt

        return main_fmt(arguments[1:])
    if command == "help" and len(arguments) > 1:
        from ktc.cli.help_ import main_help

        return main_help(arguments[1:])
    from ktc.cli.app import run

    return int(run(arguments) or 0)

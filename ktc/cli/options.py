"""What the quick commands share: an argument parser that returns instead of exiting, and `-D NAME=VALUE`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace | int:
    """The parsed arguments, or the exit code when nothing is left to do (0 after --help, 2 wrong usage)."""
    try:
        return parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def add_definitions(parser: argparse.ArgumentParser) -> None:
    """Adds `-D NAME=VALUE`, which may be repeated."""
    parser.add_argument(
        "-D",
        dest="define",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter of the file",
    )


def definitions(written: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` texts as a dictionary, the last of a name winning. Raises ValueError without a `=`."""
    found = {}
    for text in written:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"-D takes NAME=VALUE, not `{text}`")
        found[name.strip()] = value.strip()
    return found

"""`ktc check FILE...`: everything that can be said of rules without a model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ktc.cli.options import add_definitions, definitions, parse_arguments


def main_check(argv: Sequence[str]) -> int:
    """Checks files; messages go to standard error, or as one JSON object to standard output with `--json`."""
    parser = argparse.ArgumentParser(prog="ktc check", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .kt file")
    parser.add_argument("--json", action="store_true", help="print the diagnostics as JSON")
    add_definitions(parser)
    arguments = parse_arguments(parser, argv)
    if isinstance(arguments, int):
        return arguments
    try:
        params = definitions(arguments.define)
    except ValueError as error:
        print(f"ktc check: {error}", file=sys.stderr)
        return 2
    from ktc.grammar.loading import check

    failed = False
    report = []
    for file in arguments.files:
        result = check(file, params=params, text=False)
        failed = failed or bool(result.errors)
        if arguments.json:
            from ktc.grammar.render import to_json

            report.append({"file": file, "diagnostics": [to_json(d) for d in result.diagnostics]})
        elif result.diagnostics:
            from ktc.grammar.render import print_diagnostics

            print_diagnostics(result.diagnostics, result.sources)
    if arguments.json:
        json.dump({"ok": not failed, "files": report}, sys.stdout, indent=2)
        print()
    return 1 if failed else 0

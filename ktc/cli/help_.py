"""`ktc help KTnnn`: what a diagnostic means, with a wrong and a right example."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ktc.cli.options import parse_arguments


def main_help(argv: Sequence[str]) -> int:
    """Explains the codes named, or lists them all with `--list`."""
    parser = argparse.ArgumentParser(prog="ktc help", description=__doc__)
    parser.add_argument("codes", nargs="*", metavar="CODE", help="such as KT201")
    parser.add_argument("--list", action="store_true", help="list every code with its title")
    arguments = parse_arguments(parser, argv)
    if isinstance(arguments, int):
        return arguments
    from ktc.grammar.catalogue import codes, explanation

    if arguments.list or not arguments.codes:
        for name, title in codes().items():
            print(f"{name}  {title}")
        return 0
    exit_code = 0
    for name in arguments.codes:
        text = explanation(name)
        if text is None:
            from ktc.grammar.suggest import closest

            near = closest(name.upper(), codes())
            hint = f"did you mean {near}?" if near else "`ktc help --list` lists them"
            print(f"ktc help: there is no code {name}; {hint}", file=sys.stderr)
            exit_code = 2
        else:
            print(text)
    return exit_code

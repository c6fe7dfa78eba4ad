"""`ktc import-yaml`: turns KTransformers' YAML rules into `.kt` rules, and reports what they silently got wrong."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from ktc.cli.common import Json, quiet_libraries, reported
from ktc.errors import KtcError


def import_yaml(
    file: Annotated[Path, typer.Argument(help="a rule file of KTransformers", metavar="FILE")],
    output: Annotated[
        Path | None, typer.Option("-o", help="the `.kt` file to write; default: standard output")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="the model that the rules are for: a folder, a config.json or a .gguf file",
            metavar="WHERE",
        ),
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option("--gpu-memory", help="budget to write for each GPU, such as 24GiB", metavar="SIZE"),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option("--host-memory", help="budget to write for the host, such as 440GiB", metavar="SIZE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite the output if it exists")] = False,
    as_json: Json = False,
) -> None:
    """Convert KTransformers' YAML rules to a `.kt` file; what they get wrong goes to standard error."""
    memory = {"cuda": _size(gpu_memory, "--gpu-memory"), "cpu": _size(host_memory, "--host-memory")}
    with reported(as_json):
        from ktc.import_yaml.convert import convert, load, needs_model

        _writable(file, output, force)
        rules = load(file)
        if model is None:
            raise needs_model(rules)
        from ktc.weights.opening import read_config

        quiet_libraries()
        conversion = convert(rules, read_config(model), {k: v for k, v in memory.items() if v})
        if output is not None:
            output.write_text(conversion.text, encoding="utf-8", newline="\n")
    if as_json:
        from ktc.grammar.render import to_json

        report = {
            "kt": conversion.text,
            "output": None if output is None else str(output),
            "rules": conversion.rules,
            "diagnostics": [to_json(d) for d in conversion.diagnostics],
        }
        print(json.dumps(report, indent=2))
        return
    from ktc.grammar.render import print_diagnostics

    print_diagnostics(conversion.diagnostics, conversion.sources)
    if output is None:
        sys.stdout.write(conversion.text)
    else:
        lines = conversion.text.count("\n")
        print(f"{output}: {lines} lines from {conversion.rules} rules", file=sys.stderr)


def _size(text: str | None, option: str) -> str | None:
    if text is not None and not re.fullmatch(r"\d{1,9}(\.\d{1,3})?(KiB|MiB|GiB|TiB)", text):
        raise typer.BadParameter(f"{text!r} is no size such as 24GiB", param_hint=option)
    return text


def _writable(file: Path, output: Path | None, force: bool) -> None:
    """Refuses to lose a file. Raises KtcError."""
    if output is None or not output.exists():
        return
    if output.is_dir():
        raise KtcError(f"{output} is a folder", hint="name the file: -o rules.kt")
    if output.samefile(file):
        raise KtcError(f"{output} is the rule file itself", hint="name another file after -o")
    if not force:
        raise KtcError(f"{output} exists", hint="--force overwrites it")

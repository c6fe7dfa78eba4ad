"""`ktc compile`: checks, compiles and writes an artifact; with `--pack` the weights too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ktc.cli.common import (
    Define,
    DumpTo,
    File,
    Json,
    Model,
    NoWeights,
    bar,
    compile_file,
    print_json,
    reported,
)
from ktc.cli.plan import plan_json, print_plan


def compile_(
    file: File,
    output: Annotated[
        Path | None, typer.Option("-o", help="folder of the artifact; default: the file's name with `.ktc`")
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="write the weights too, in the layouts that kernels read")
    ] = False,
    define: Define = None,
    model: Model = None,
    no_weights: NoWeights = False,
    dump: DumpTo = None,
    as_json: Json = False,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="print what `place auto` chose as rules, and stop")
    ] = False,
    help_params: Annotated[
        bool, typer.Option("--help-params", help="list the file's parameters and stop")
    ] = False,
) -> None:
    """Check a `.kt` file, compile its model and write the artifact."""
    if help_params:
        _print_params(file, as_json)
        return
    if pack and (no_weights or freeze):
        raise typer.BadParameter("it writes weights", param_hint="--pack")
    target = None if no_weights or freeze else (output or file.with_suffix(".ktc"))
    compiled, placement = compile_file(
        file, model=model, define=define, weights=not no_weights, dump=dump, output=None if pack else target,
        as_json=as_json,
    )  # fmt: skip
    if pack and target is not None:
        with reported(as_json), bar("packing weights") as progress:
            from ktc import api

            api.CompiledModel(compiled, placement).save(target, pack=True, progress=progress)
    if freeze:
        from ktc.passes.autoplace import freeze as frozen

        print(frozen(compiled.context) or "# no rule of the file says `place auto`", end="\n")
        return
    if as_json:
        print_json({**plan_json(compiled, placement), "artifact": str(target) if target else None})
        return
    print_plan(compiled, placement)
    print(f"\nartifact: {target}" if target else "\nno artifact: compiled without weights")


def _print_params(file: Path, as_json: bool) -> None:
    from ktc.grammar.loading import load

    with reported(as_json):
        rules = load(file)
        rows = [
            {"name": p.name, "type": p.type, "default": str(p.value), "help": p.help}
            for p in rules.params.values()
        ]
        if as_json:
            print_json({"params": rows})
            return
        for row in rows:
            print(f"-D {row['name']}={row['default']}  ({row['type']})  {row['help']}")
        if not rows:
            print(f"{file} has no parameters")

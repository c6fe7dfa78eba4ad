"""`ktc bench`: tokens a second of prompts and of generation, and where the time goes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ktc.cli.common import Define, Json, Model, Stages, open_model, print_json, reported

if TYPE_CHECKING:
    from ktc.runtime.bench import Result


def bench(
    where: Annotated[
        Path, typer.Argument(help="an artifact folder or a `.kt` file", metavar="ARTIFACT|FILE")
    ],
    prompt: Annotated[
        int, typer.Option("-p", "--prompt", help="tokens of the prompt; 0: no such test")
    ] = 512,
    generate: Annotated[
        int, typer.Option("-n", "--generate", help="tokens generated one by one; 0: no such test")
    ] = 64,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", help="runs of each test")] = 3,
    threads: Annotated[
        int | None, typer.Option("--threads", help="threads of the CPU kernels; default: the cores")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="also count time, bytes and operations of every kind of op")
    ] = False,
    as_json: Json = False,
    define: Define = None,
    model: Model = None,
) -> None:
    """Measure a compiled model's speed: prompts (pp) and generation (tg), as llama-bench does."""
    placed = open_model(where, model, define)
    with reported(as_json):
        from ktc import _cpu, machine
        from ktc.errors import KtcError
        from ktc.runtime.bench import measure

        if threads is not None:
            try:
                _cpu.set_threads(threads)
            except ValueError as error:
                raise KtcError(str(error), hint="give --threads a number of cores") from error
        with Stages() as stage:
            results = measure(placed, prompt, generate, repetitions, profile, machine.cached(), stage)
        facts = _facts(placed)
        if as_json:
            print_json(facts | {"tests": [_plain(result) for result in results]})
            return
        _show(facts, results)


def _facts(placed: Any) -> dict[str, Any]:
    from ktc import _cpu, machine

    engine = placed._runner.engine
    limit = engine.placement.threads
    graphs = engine.programs
    return {
        "model": type(placed).__name__,
        "weight_bytes": engine.weight_bytes,
        "processor": machine.processor(),
        "isa": _cpu.isa(),
        "threads": min(_cpu.threads(), limit) if limit else _cpu.threads(),
        "segments": {
            name: [
                {
                    "native": piece.native,
                    "ops": len(piece.ops),
                    "nodes": len(piece.nodes),
                    "why": piece.reasons,
                }
                for piece in graph.pieces
            ]
            for name, graph in graphs.items()
        },
    }


FUSED = "ops that run as one step count under one name: norms and gates of prompts under linear, rope under attention"


def _plain(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "tokens_per_second": result.median,
        "spread": result.spread,
        "rates": list(result.rates),
        "profile": [asdict(share) for share in result.profile],
    }


def _show(facts: dict[str, Any], results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    mebibytes = facts["weight_bytes"] / 2**20
    console.print(
        f"{facts['model']}, {mebibytes:.1f} MiB of weights; {facts['threads']} threads, {facts['isa']}, "
        f"{facts['processor']}",
        highlight=False,
    )
    for name, pieces in facts["segments"].items():
        native = sum(piece["native"] for piece in pieces)
        ops = sum(piece["ops"] for piece in pieces)
        plain = sum(len(piece["why"]) for piece in pieces)
        if not pieces:
            console.print(f"graph {name}: Python (KTC_NATIVE=0)", highlight=False)
        elif len(pieces) == native == 1:
            console.print(f"graph {name}: one native program of {ops} ops", highlight=False)
        else:
            console.print(
                f"graph {name}: {native} native programs, {ops} ops; {plain} nodes in Python", highlight=False
            )
            for reason in sorted({why for piece in pieces for why in piece["why"].values()}):
                console.print(f"  Python: {reason}", highlight=False)
    table = Table("test", "tok/s", "±", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for result in results:
        table.add_row(result.name, f"{result.median:.2f}", f"{result.spread:.2f}")
    console.print(table)
    for result in results:
        if result.profile:
            console.print()
            console.print(_profile_table(result))
    if any(result.profile for result in results):
        console.print(FUSED, highlight=False, soft_wrap=True)


def _profile_table(result: Result) -> Any:
    from rich.table import Table

    table = Table(f"{result.name}: op", "calls", "ms", "share", "GB/s", "GOPS", "of limit", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for share in result.profile:
        table.add_row(
            share.kind, str(share.calls) if share.calls else "", f"{share.seconds * 1e3:.2f}",
            f"{share.share:.1%}", f"{share.gigabytes:.1f}" if share.gigabytes else "",
            f"{share.gigaops:.1f}" if share.gigaops else "", "" if share.limit is None else f"{share.limit:.0%}",
        )  # fmt: skip
    return table

"""`ktc verify FILE`: a compiled model's logits beside the eager model's, or beside another program's."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ktc.cli.common import (
    Define,
    Json,
    Model,
    Stages,
    bar,
    compile_file,
    open_model,
    print_json,
    quiet_libraries,
    reported,
)
from ktc.errors import KtcError


def verify(
    where: Annotated[
        Path, typer.Argument(help="an artifact folder or a `.kt` file", metavar="ARTIFACT|FILE")
    ],
    against: Annotated[
        Path | None,
        typer.Option("--against", help="compare with this program or artifact instead of the eager model"),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="the text to read")] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="a file with the text to read; default: a text of ktc's own")
    ] = None,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=2, help="most tokens of the text")] = 256,
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="how many of the last tokens are computed one by one")
    ] = 16,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance-kl", min=0.0, help="exit with 1 if the mean KL is larger")
    ] = None,
    define: Define = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Compare a program's logits with those of the eager model, or of another program."""
    if prompt is not None and text is not None:
        raise typer.BadParameter("give --prompt or --text, not both")
    opened = _opened(where, model, define, as_json)
    with reported(as_json):
        from ktc import verify as verification

        read = prompt if prompt is not None else _read(text) if text is not None else verification.TEXT
        ids = verification.encode(opened.tokenizer, read, tokens)
        steps = min(steps, ids.shape[1] - 1)
        if against is None:
            name, reference = f"the eager model on {opened.source.path}", _eager(opened.source, ids)
        else:
            name, reference = str(against), partial(open_model, against, model, None)
    with reported(as_json):
        expected = _measured(reference, ids, steps, name)
        got = _measured(opened.load, ids, steps, str(where))
        found = verification.verify(expected, got, ids, steps)
    over = tolerance is not None and not found.overall.kl_mean <= tolerance
    if as_json:
        print_json(
            {
                "file": str(where),
                "reference": name,
                **found.to_json(),
                "tolerance_kl": tolerance,
                "within": not over,
            }
        )
    else:
        _print(where, name, found, opened.tokenizer, ids)
    if over:
        print(f"error: the mean KL {found.overall.kl_mean:.2e} is above {tolerance:g}", file=sys.stderr)
        raise typer.Exit(1)


def _measured(load: Callable[[], Any], ids: Any, steps: int, name: str) -> Any:
    """Logits of a model that is loaded for it and gone afterwards: the two need not fit into memory at once."""
    from ktc.verify import logits_of

    model = load()
    with Stages() as stage:
        stage(f"{ids.shape[1]} positions of {name}")
        logits = logits_of(model, ids, steps)
    del model
    gc.collect()
    return logits


class Opened(NamedTuple):
    """A program that compiled: how to load it, the source of its weights, its tokenizer."""

    load: Callable[[], Any]
    source: Any
    tokenizer: Any


def _opened(where: Path, model: str | None, define: list[str] | None, as_json: bool) -> Opened:
    if not where.is_dir():
        compiled, placement = compile_file(where, model=model, define=define, as_json=as_json)
        source = compiled.context.source
        return Opened(lambda: _loaded(compiled, placement), source, source.tokenizer())
    with reported(as_json):
        if define:
            raise KtcError("an artifact's parameters are fixed", hint="compile the `.kt` file again with -D")
        quiet_libraries()
        from ktc.runtime import artifact as artifacts
        from ktc.weights.opening import open_source

        found = artifacts.load(where)
        place = model or (found.manifest["source"] or {}).get("path")
        if place is None:
            raise KtcError(f"{where} does not say where its weights are", hint="pass --model WHERE")
        moved = None if found.packed else model  # a packed artifact has its weights; the eager model has not
        return Opened(lambda: open_model(where, moved, None), open_source(place), found.tokenizer())


def _loaded(compiled: Any, placement: Any) -> Any:
    from ktc import api

    with bar("loading weights") as progress:
        return api.load_compiled(compiled, placement, progress)


def _eager(source: Any, ids: Any) -> Callable[[], Any]:
    from ktc.eager import eager_model

    logits = (
        8 * ids.shape[1] * source.config().get_text_config().vocab_size
    )  # its own, and the program's later

    def load() -> Any:
        with bar("loading the eager model") as progress:
            return eager_model(source, progress, reserve=logits)

    return load


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise KtcError(f"{path} is not UTF-8: {error}") from error


def _print(where: Path, name: str, found: Any, tokenizer: Any, ids: Any) -> None:
    print(f"{where} against {name}\n")
    columns = ("positions", "KL mean", "KL max", "top-1", "max error", "relative error")
    print(f"  {'':<15}" + "".join(f"{column:>16}" for column in columns))
    rows = (("all", found.overall), ("prefill", found.prefill), ("token by token", found.steps))
    for label, part in rows:
        if part is not None:
            cells = (
                f"{part.positions}", f"{part.kl_mean:.2e}", f"{part.kl_max:.2e}", f"{100 * part.top1:.1f} %",
                f"{part.max_error:.2e}", f"{part.relative_error:.2e}",
            )  # fmt: skip
            print(f"  {label:<15}" + "".join(f"{cell:>16}" for cell in cells))
    worst = found.overall.worst
    token = tokenizer.decode(ids[0, worst : worst + 1])
    print(f"\n  perplexity {found.perplexity:.4f}, of the reference {found.expected_perplexity:.4f}")
    print(f"  the largest KL is at position {worst}, after {token!r}")

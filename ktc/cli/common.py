"""What the commands share: arguments, errors for people, progress on a terminal, opening files and artifacts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ktc.errors import KtcError
from ktc.grammar.diagnostics import KtError
from ktc.grammar.render import print_diagnostics, to_json

if TYPE_CHECKING:
    from rich.progress import Progress

    from ktc.runtime.model import PlacedModel

File = Annotated[Path, typer.Argument(help="a `.kt` file", metavar="FILE")]
Define = Annotated[
    list[str] | None,
    typer.Option("-D", help="set a parameter of the file: -D context=4096", metavar="NAME=VALUE"),
]
Model = Annotated[
    str | None, typer.Option("--model", help="where the model is; overrides the file", metavar="WHERE")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
NoWeights = Annotated[
    bool, typer.Option("--no-weights", help="read the configuration only: plan without weights")
]
DumpTo = Annotated[
    Path | None, typer.Option("--dump", help="write what every pass changed to a folder", metavar="DIR")
]


def definitions(items: list[str] | None) -> dict[str, str]:
    """`-D name=value` as a dictionary. Raises typer.BadParameter for anything else."""
    found = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"{item!r} is not NAME=VALUE", param_hint="-D")
        found[name.strip()] = value.strip()
    return found


@contextmanager
def reported(as_json: bool = False) -> Iterator[None]:
    """Turns typed errors into messages on stderr (or JSON on stdout) and exit code 1."""
    try:
        yield
    except KtError as error:
        if as_json:
            print(json.dumps({"diagnostics": [to_json(d) for d in error.diagnostics]}, indent=2))
        else:
            print_diagnostics(error.diagnostics, error.sources)
        raise typer.Exit(1) from None
    except (KtcError, OSError) as error:
        if as_json:
            print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}, indent=2))
        else:
            print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def quiet_libraries() -> None:
    """Keeps the libraries below from printing: messages here are ktc's."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", module="torch")


class Stages:
    """Shows the running stage on stderr, on a terminal only."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status = self._console.status("starting") if self._console.is_terminal else None

    def __enter__(self) -> Callable[[str], None]:
        if self._status is not None:
            self._status.start()
        return lambda stage: self._status.update(stage) if self._status is not None else None

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()


@contextmanager
def bar(label: str, unit: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, on a terminal only; call it with (done, total)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    counts = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    progress: Progress = Progress(
        TextColumn(label), BarColumn(), counts, TimeRemainingColumn(), console=console, transient=True
    )
    with progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def compile_file(
    file: Path,
    *,
    model: str | None,
    define: list[str] | None,
    weights: bool = True,
    dump: Path | None = None,
    output: Path | None = None,
    as_json: bool = False,
) -> tuple[Any, Any]:
    """Compiles a file as every command does; warnings go to stderr. Returns (Compiled, Placement)."""
    params = definitions(define)
    with reported(as_json):
        from ktc.grammar.loading import load

        rules = load(file, params=params)
        with Stages() as stage:
            stage("loading torch and transformers")
            from ktc import api

            quiet_libraries()
            compiled, placement = api.compile(
                rules, model=model, output=output, weights=weights, dump=dump, progress=stage
            )
        if compiled.context.warnings and not as_json:
            print_diagnostics(compiled.context.warnings, rules.sources)
        return compiled, placement


def open_model(where: Path, model: str | None, define: list[str] | None) -> PlacedModel:
    """A runnable model from an artifact folder, or compiled here and now from a `.kt` file."""
    if where.is_dir():
        with reported():
            if define:
                raise KtcError(
                    "an artifact's parameters are fixed", hint="compile the `.kt` file again with -D"
                )
            with Stages() as stage:
                stage("loading torch and transformers")
                from ktc import api

                quiet_libraries()
            with bar("loading weights") as progress:
                found: Any = api.load(where, model=model, progress=progress)
            return found  # type: ignore[no-any-return]
    compiled, placement = compile_file(where, model=model, define=define)
    with reported():
        from ktc import api

        with bar("loading weights") as progress:
            loaded: Any = api.load_compiled(compiled, placement, progress)
        return loaded  # type: ignore[no-any-return]


def tokenizer_of(model: PlacedModel) -> Any:
    """The tokenizer of an opened model. Raises KtcError when its source has none."""
    found = getattr(model, "tokenizer", None)
    if found is None:
        raise KtcError(
            "the model has no tokenizer", hint="its folder or GGUF file must hold one to read text"
        )
    return found


def print_json(data: Mapping[str, Any]) -> None:
    """Prints a listing as JSON."""
    print(json.dumps(data, indent=2))

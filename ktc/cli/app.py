"""The commands that need the compiler: compile, plan, explain, inspect, run, chat, verify, bench, doctor."""

from __future__ import annotations

import typer

from ktc.cli.bench import bench
from ktc.cli.chat import chat
from ktc.cli.compile_ import compile_
from ktc.cli.doctor import doctor
from ktc.cli.explain import explain
from ktc.cli.import_yaml import import_yaml
from ktc.cli.inspect_ import inspect_
from ktc.cli.plan import plan
from ktc.cli.run import run as run_command
from ktc.cli.verify import verify

app = typer.Typer(
    name="ktc", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Compile, place and run large language models described by `.kt` files.",
)  # fmt: skip
app.command("compile")(compile_)
app.command("plan")(plan)
app.command("explain")(explain)
app.command("inspect")(inspect_)
app.command("import-yaml")(import_yaml)
app.command("run")(run_command)
app.command("chat")(chat)
app.command("verify")(verify)
app.command("bench")(bench)
app.command("doctor")(doctor)


def _elsewhere(name: str, help: str) -> None:
    """Lists a command that `ktc.cli` answers before torch is loaded, so that `ktc --help` shows all of them."""

    @app.command(name, help=help, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def listed() -> None:  # pragma: no cover - ktc.cli:main never lets it come here
        raise typer.Exit(2)


_elsewhere("check", "Check `.kt` files without a model.")
_elsewhere("fmt", "Format `.kt` files.")
_elsewhere("help", "Explain a diagnostic: `ktc help KT201`.")


def run(argv: list[str]) -> int:
    """Runs a command line (without the program's name) and returns the exit code."""
    try:
        app(args=argv, prog_name="ktc")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    return 0

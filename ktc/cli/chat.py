"""`ktc chat`: a conversation in the terminal; the model remembers it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ktc.cli.common import Define, Model, open_model, reported, tokenizer_of
from ktc.cli.run import Seed, Temperature, Tokens, sampling, stats_line

HELP = "/reset forgets the conversation, /stats shows rates, /exit (or Ctrl-D) leaves; Ctrl-C stops an answer"


def chat(
    where: Annotated[
        Path, typer.Argument(help="an artifact folder or a `.kt` file", metavar="ARTIFACT|FILE")
    ],
    system: Annotated[str | None, typer.Option("--system", help="the system message")] = None,
    tokens: Tokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    define: Define = None,
    model: Model = None,
) -> None:
    """Talk with a compiled model; it remembers the conversation."""
    placed = open_model(where, model, define)
    with reported():
        from ktc.runtime.chat import ChatSession

        session = ChatSession(
            placed,
            tokenizer_of(placed),
            system=system,
            max_new_tokens=tokens,
            seed=seed,
            **sampling(temperature),
        )
        interactive = sys.stdin.isatty()
        if interactive:
            print(HELP, file=sys.stderr)
        answer = None
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                print()
                continue
            if not line:
                continue
            if line in ("/exit", "/quit"):
                break
            if line == "/reset":
                session.reset()
                continue
            if line == "/stats":
                print(stats_line(answer.stats) if answer is not None else "nothing said yet", file=sys.stderr)
                continue
            answer = session.send(line)
            try:
                for piece in answer:
                    print(piece, end="", flush=True)
            except KeyboardInterrupt:
                answer.close()
            print()

"""`ktc run`: answers one prompt, streaming."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ktc.cli.common import Define, Model, bar, open_model, reported, tokenizer_of

Temperature = Annotated[
    float | None, typer.Option("--temperature", help="0 is greedy; default: the model's own setting")
]
Seed = Annotated[int | None, typer.Option("--seed", help="of sampling")]
Tokens = Annotated[int | None, typer.Option("-n", "--max-new-tokens", help="most tokens of an answer")]


def run(
    where: Annotated[
        Path, typer.Argument(help="an artifact folder or a `.kt` file", metavar="ARTIFACT|FILE")
    ],
    prompt: Annotated[str, typer.Argument(help="the prompt; `-` reads it from standard input")],
    tokens: Tokens = 256,
    temperature: Temperature = None,
    seed: Seed = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="continue the text as it is, without the chat template")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="print token counts and rates to stderr")] = False,
    define: Define = None,
    model: Model = None,
) -> None:
    """Answer one prompt with a compiled model."""
    text = sys.stdin.read() if prompt == "-" else prompt
    placed = open_model(where, model, define)
    with reported():
        from ktc.runtime.text import stream_text

        with bar("reading the prompt", "tokens") as progress:
            placed.on_prefill = progress
            stream = stream_text(
                placed, tokenizer_of(placed), text, chat=False if raw else None, max_new_tokens=tokens, seed=seed,
                **sampling(temperature),
            )  # fmt: skip
            pieces = iter(stream)
            first = next(pieces, "")
        print(first, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
        if stats:
            print(stats_line(stream.stats), file=sys.stderr)


def sampling(temperature: float | None) -> dict[str, Any]:
    """Generation settings for `--temperature`."""
    if temperature is None:
        return {}
    return {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature}


def stats_line(stats: object) -> str:
    """Counts and rates of one generation."""
    from ktc.runtime.text import TextStats

    if not isinstance(stats, TextStats):
        return ""
    return (
        f"prompt {stats.prompt_tokens} tokens ({stats.prefill_rate:.1f} tok/s), "
        f"answer {stats.new_tokens} tokens ({stats.decode_rate:.1f} tok/s)"
    )

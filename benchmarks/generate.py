"""Prefill of 512 tokens and decode of 64: ktc beside transformers in float32 and bfloat16, with the error of each."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

import ktc
from benchmarks.machine import ROOT, header, load, save, table
from ktc import _cpu
from ktc.eager import eager_model
from ktc.weights.opening import open_source

sys.path.insert(0, str(ROOT / "tests"))
from support.prose import TEXT

PREFILL, DECODE, ROUNDS = 512, 64, 3
MODELS = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m.Q4_K_M.gguf"}


@dataclass
class Contender:
    """One way to run a model, with its tokens per second of every round."""

    name: str
    model: PreTrainedModel
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


@torch.no_grad()
def measure(contender: Contender, ids: torch.Tensor) -> None:
    """One round: a prefill of ids[1, PREFILL] for the last token's logits, then DECODE greedy steps behind it."""
    start = time.perf_counter()
    out = contender.model(input_ids=ids, use_cache=True, logits_to_keep=1)
    contender.prefill.append(ids.shape[1] / (time.perf_counter() - start))
    cache = out.past_key_values
    token = out.logits[:, -1:].argmax(-1)
    start = time.perf_counter()
    for _ in range(DECODE):
        out = contender.model(input_ids=token, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
    contender.decode.append(DECODE / (time.perf_counter() - start))


@torch.no_grad()
def error(contender: Contender, ids: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Relative error ‖y - e‖ / ‖e‖ of the logits of all positions, and how often the likeliest token agrees."""
    logits = contender.model(input_ids=ids).logits.float()
    relative = (logits - expected).norm() / expected.norm()
    agreement = (logits.argmax(-1) == expected.argmax(-1)).float().mean()
    return float(relative), float(agreement)


def compare(example: str) -> str:
    """The table of one example, Markdown."""
    path = ROOT / "models" / MODELS[example]
    source = open_source(path)
    tokenizer = source.tokenizer()
    if tokenizer is None:
        raise RuntimeError(f"{path} holds no tokenizer")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[:, :PREFILL]
    if ids.shape[1] < PREFILL:
        raise RuntimeError(f"the text has {ids.shape[1]} tokens, fewer than {PREFILL}")
    exact = eager_model(source)
    exact.set_attn_implementation("sdpa")
    half = copy.deepcopy(exact).to(torch.bfloat16)
    placed = ktc.compile(ROOT / "examples" / f"{example}.kt").load()
    contenders = [
        Contender("ktc, formats of the file", placed),
        Contender("transformers float32", exact),
        Contender("transformers bfloat16", half),
    ]
    for contender in contenders:
        measure(contender, ids)
        contender.prefill.clear()
        contender.decode.clear()
    for _ in range(ROUNDS):
        for contender in contenders:
            measure(contender, ids)
    with torch.no_grad():
        expected = exact(input_ids=ids).logits
    first = contenders[0]
    rows = []
    for contender in contenders:
        relative, agreement = error(contender, ids, expected)
        rows.append(
            (
                contender.name,
                cell(contender.prefill, first.prefill),
                cell(contender.decode, first.decode),
                f"{relative:.1e}",
                f"{agreement:.1%}",
            )
        )  # fmt: skip
    columns = (
        f"{path.name}", f"prefill of {PREFILL}", f"decode of {DECODE}", "relative logit error", "same top-1",
    )  # fmt: skip
    return table(columns, rows)


def cell(mine: list[float], first: list[float]) -> str:
    """How many times as fast as this contender the first one is: median and range of the ratios by round."""
    if mine is first:
        return "1"
    ratios = [a / b for a, b in zip(first, mine, strict=True)]
    return f"ktc is {statistics.median(ratios):.2f}× as fast ({min(ratios):.2f} to {max(ratios):.2f})"


def main(arguments: list[str]) -> int:
    """Runs the examples named, or all, and writes results/generate-DATE.md."""
    text = header(
        "Prefill and decode beside transformers",
        f"threads: ktc {_cpu.threads()}, torch {torch.get_num_threads()}",
        f"medians (and ranges) of the ratios in {ROUNDS} rounds after a warm-up; in a round all take turns",
        f"batch 1, English text; decode starts behind the {PREFILL} tokens",
        "transformers is not compiled; it runs its sdpa attention on the dequantised weights",
        "errors are against transformers in float32",
    )  # fmt: skip
    tables = [compare(example) for example in arguments or MODELS]
    save("generate", f"{text}- load average after {load()}\n\n" + "\n".join(tables))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

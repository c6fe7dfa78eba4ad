"""How far are compiled models from eager ones: KL, top-1, greedy text, by linear kernel and dtype of the KV cache.

`python -m benchmarks.accuracy [--json FILE] [MODEL…]`, MODEL being smollm2 or gemma3. The reference is the eager model
of transformers in float32 on the dequantised weights. KL(eager || ktc) is in nats over about 650 positions of English
text; greedy answers are 64 tokens on five prompts; one counts as identical when all of its tokens are those of eager.
"inputs rounded" is the eager model itself with the inputs of its linear layers rounded to int8 in blocks of 32: what
this arithmetic costs whoever implements it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import header, save, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.agreement import differences, greedy
from support.real_models import GEMMA3, SMOLLM2
from support.references import NEW_TOKENS, Reference, reference

import ktc
from ktc.api import load_compiled
from ktc.verify import compare_logits, logits_of

MODELS = {
    "smollm2": (SMOLLM2, "LlamaForCausalLM", "llama"),
    "gemma3": (GEMMA3, "Gemma3ForCausalLM", "gemma3"),
}
PROGRAM = """model {name} from "{path}"
include "std/{family}.kt"
device host = cpu (memory = 4GiB)
rule everything {{ match ** place host }}
rule linears {{ match ** : Linear kernel {kernel} }}
rule cache {{ match @attention cache paged(dtype = {dtype}, tokens = 2048) }}
"""
VARIANTS = (
    ("torch.linear", "f32"), *(("cpu.linear", dtype) for dtype in ("f32", "f16", "bf16", "q8_0")),
)  # fmt: skip
BLOCK = 32


def measure(model: str, kernel: str, dtype: str) -> dict[str, Any]:
    """One row: the compiled model beside eager."""
    file, name, family = MODELS[model]
    ref = reference(file)
    text = PROGRAM.format(name=name, path=ref.path, family=family, kernel=kernel, dtype=dtype)
    placed: Any = load_compiled(*ktc.compile(text))
    found = compare_logits(ref.logits, logits_of(placed, ref.ids))
    expected, logits = ref.answers
    if kernel == "torch.linear":  # slow a token at a time, so all prompts at once
        got, _ = greedy(placed, ref.prompts, NEW_TOKENS)
    else:
        got = torch.cat([greedy(placed, [prompt], NEW_TOKENS)[0] for prompt in ref.prompts])
    apart = differences(expected, logits, got)
    gap = max((d.gap for d in apart), default=0.0)
    return {
        "model": model, "kernel": kernel, "cache": dtype, **asdict(found),
        "identical": len(ref.prompts) - len(apart), "prompts": len(ref.prompts), "gap": gap,
    }  # fmt: skip


def rounded_inputs(model: str, ref: Reference) -> dict[str, Any]:
    """The eager model with rounded inputs beside itself."""

    def rounded(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        blocks = args[0].unflatten(-1, (-1, BLOCK))
        scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
        return ((blocks / scale).round() * scale).flatten(-2)

    expected = ref.logits
    hooks = [
        m.register_forward_pre_hook(rounded) for m in ref.model.modules() if isinstance(m, torch.nn.Linear)
    ]
    try:
        found = compare_logits(expected, logits_of(ref.model, ref.ids))
    finally:
        for hook in hooks:
            hook.remove()
    return {"model": model, "kernel": "eager, inputs rounded", "cache": "f32", **asdict(found)}


def row(found: dict[str, Any]) -> tuple[str, ...]:
    """A measurement as cells."""
    same = f"{found['identical']} of {found['prompts']}" if "identical" in found else "–"
    gap = f"{found['gap']:.3f}" if found.get("gap") else "–"
    numbers = (f"{found['kl_mean']:.2e}", f"{found['kl_max']:.2e}", f"{100 * found['top1']:.1f} %", same, gap)
    return (found["model"], found["kernel"], found["cache"], str(found["positions"]), *numbers)


def main() -> int:
    """Measures, prints and saves the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for the eager model")
    arguments = parser.parse_args()
    unknown = set(arguments.models) - set(MODELS)
    if unknown:
        parser.error(f"no model {', '.join(sorted(unknown))}; there is {', '.join(MODELS)}")
    torch.set_num_threads(arguments.threads)
    head = header(
        "Accuracy of compiled models", f"torch threads of the eager model: {arguments.threads}; ktc: all cores",
        "KL(eager || ktc) in nats; gap: by how much eager preferred its token where answers part, at most",
    )  # fmt: skip
    start, rows = time.perf_counter(), []
    for model in arguments.models or MODELS:
        for kernel, dtype in VARIANTS:
            rows.append(measure(model, kernel, dtype))
            print(
                " | ".join(row(rows[-1])),
                f"({time.perf_counter() - start:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
        rows.append(rounded_inputs(model, reference(MODELS[model][0])))
    columns = (
        "model",
        "linear kernel",
        "KV cache",
        "positions",
        "KL mean",
        "KL max",
        "top-1",
        "greedy identical",
        "gap",
    )
    save("accuracy", head + "\n" + table(columns, [row(found) for found in rows]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

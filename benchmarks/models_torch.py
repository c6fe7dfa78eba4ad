"""Not a benchmark: what `models` runs in a process of its own: transformers' eager model in bfloat16, sdpa attention.

`MODEL THREADS` answers as `models_peer` does: `prefill SETTING TOKENS`, `decode SETTING TOKENS`, `logits SETTING IDS
OUT`, where the only setting is "bf16".
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ktc.eager import eager_model
from ktc.weights.opening import open_source


@torch.inference_mode()
def prefill(model: PreTrainedModel, tokens: int) -> float:
    """Seconds of one prompt of random tokens, for the logits of the last."""
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (1, tokens))
    start = time.perf_counter()
    model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start


@torch.inference_mode()
def decode(model: PreTrainedModel, tokens: int) -> float:
    """Seconds of so many random tokens one by one, from an empty cache."""
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (tokens, 1, 1))
    cache = None
    start = time.perf_counter()
    for token in ids:
        cache = model(input_ids=token, past_key_values=cache, use_cache=True).past_key_values
    return time.perf_counter() - start


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: str, out: str) -> int:
    """Writes float32[tokens, vocabulary]; returns the number of tokens."""
    found = model(input_ids=torch.from_numpy(np.load(ids))[None]).logits[0].float()
    np.save(out, found.numpy())
    return len(found)


def main(path: str, threads: str) -> None:
    """Answers until standard input ends."""
    torch.set_num_threads(int(threads))
    model = eager_model(open_source(Path(path)))
    model.bfloat16()
    model.set_attn_implementation("sdpa")
    print(json.dumps({"version": torch.__version__, "settings": ["bf16"]}), flush=True)
    for line in sys.stdin:
        what, _, *rest = json.loads(line)
        answers = {"prefill": prefill, "decode": decode}
        answer = answers[what](model, int(rest[0])) if what in answers else logits(model, *rest)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Not a benchmark: what `models` runs in a process of its own, an interpreter with llama-cpp-python and numpy.

`llama_cpp MODEL THREADS REPACK CONTEXT UBATCH` loads a file and answers lines of standard input with lines of JSON:
`settings` (names of the contexts made: with and without flash attention), `prefill SETTING TOKENS`, `decode SETTING
TOKENS` (both: seconds), `logits SETTING IDS OUT` (float32[tokens, vocabulary] of the int64[tokens] in a file). Between
two lines it sleeps: llama.cpp's threads are OpenMP's, which stop spinning some milliseconds after their last loop.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np

SETTINGS = {"fa": 1, "no fa": 0}


class Peer:
    """A model of llama.cpp with a context for each setting."""

    def __init__(self, path: str, threads: int, repack: bool, context: int, ubatch: int) -> None:
        llama.llama_log_set(_SILENT, ctypes.c_void_p(0))
        llama.llama_backend_init()
        options = llama.llama_model_default_params()
        options.n_gpu_layers = 0
        options.use_extra_bufts = repack
        self.model: Any = llama.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        vocabulary = llama.llama_model_get_vocab(self.model)
        self.vocabulary = int(llama.llama_vocab_n_tokens(vocabulary))
        self.contexts = {}
        for name, flash in SETTINGS.items():
            settings: Any = llama.llama_context_default_params()
            settings.n_ctx = context
            settings.n_batch = settings.n_ubatch = min(ubatch, context)
            settings.n_batch = context
            settings.flash_attn_type = flash
            settings.offload_kqv = settings.op_offload = False
            settings.n_threads = settings.n_threads_batch = threads
            found = llama.llama_init_from_model(self.model, settings)
            if not found:
                raise SystemExit(f"llama.cpp makes no context for {path}")
            self.contexts[name] = found
        self.random = np.random.default_rng(1)

    def run(self, setting: str, ids: Any, first: int, wanted: bool = False) -> None:
        """One batch; logits of the last token, or of all."""
        batch = llama.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for index, token in enumerate(ids):
                batch.token[index], batch.pos[index] = int(token), first + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = int(wanted or index == len(ids) - 1)
            if llama.llama_decode(self.contexts[setting], batch) != 0:
                raise SystemExit("llama.cpp does not run the batch")
        finally:
            llama.llama_batch_free(batch)

    def clear(self, setting: str) -> None:
        """Forgets all tokens."""
        llama.llama_memory_clear(llama.llama_get_memory(self.contexts[setting]), True)

    def prefill(self, setting: str, tokens: int) -> float:
        """Seconds of one prompt of random tokens."""
        ids = self.random.integers(0, self.vocabulary, tokens)
        self.clear(setting)
        start = time.perf_counter()
        self.run(setting, ids, 0)
        llama.llama_synchronize(self.contexts[setting])
        return time.perf_counter() - start

    def decode(self, setting: str, tokens: int) -> float:
        """Seconds of so many random tokens one by one, from an empty cache."""
        ids = self.random.integers(0, self.vocabulary, tokens)
        self.clear(setting)
        start = time.perf_counter()
        for index, token in enumerate(ids):
            self.run(setting, [token], index)
            llama.llama_synchronize(self.contexts[setting])
        return time.perf_counter() - start

    def logits(self, setting: str, ids: str, out: str) -> int:
        """Writes float32[tokens, vocabulary]; returns the number of tokens."""
        tokens = np.load(ids)
        self.clear(setting)
        self.run(setting, tokens, 0, wanted=True)
        rows = [
            np.ctypeslib.as_array(
                llama.llama_get_logits_ith(self.contexts[setting], index), shape=(self.vocabulary,)
            ).copy()
            for index in range(len(tokens))
        ]
        np.save(out, np.stack(rows))
        return len(rows)


@llama.llama_log_callback
def _SILENT(level: int, text: bytes, data: Any) -> None:
    """Errors only."""
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


def main(kind: str, path: str, threads: str, repack: str, context: str, ubatch: str) -> None:
    """Answers until standard input ends."""
    if kind != "llama_cpp":
        raise SystemExit(f"no such peer: {kind}")
    peer = Peer(path, int(threads), repack == "1", int(context), int(ubatch))
    print(json.dumps({"version": llama_version(), "settings": list(SETTINGS)}), flush=True)
    for line in sys.stdin:
        what, setting, *rest = json.loads(line)
        if what == "prefill":
            answer: float = peer.prefill(setting, int(rest[0]))
        elif what == "decode":
            answer = peer.decode(setting, int(rest[0]))
        elif what == "logits":
            answer = peer.logits(setting, *rest)
        else:
            raise SystemExit(f"no such request: {what}")
        print(json.dumps(answer), flush=True)


def llama_version() -> str:
    """Of the package."""
    import llama_cpp

    return str(llama_cpp.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])

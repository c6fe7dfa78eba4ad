"""Not a benchmark: what `llama_cpp_logits` runs in processes of its own, with llama.cpp's packages on their path.

`logits MODEL IDS OUT`, in an interpreter with llama-cpp-python and numpy, writes float32[tokens, vocabulary] of the
int64[tokens] in IDS.
`convert SOURCE FOLDER OUT` runs the converter of llama.cpp's checkout SOURCE, but for the tokenizer, which is ours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def logits(model: str, ids: str, out: str) -> None:
    """One batch on the CPU: float32 KV cache, no flash attention, all of a sliding window's cache kept."""
    import llama_cpp.llama_cpp as llama
    import numpy as np

    llama.llama_backend_init()
    options = llama.llama_model_default_params()
    options.n_gpu_layers = 0
    options.use_extra_bufts = False
    loaded = llama.llama_model_load_from_file(model.encode(), options)
    if not loaded:
        raise SystemExit(f"llama.cpp does not load {model}")
    tokens = np.load(ids)
    settings: Any = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(256, len(tokens))
    settings.type_k = settings.type_v = llama.GGML_TYPE_F32
    settings.flash_attn_type = 0
    settings.swa_full = True
    settings.offload_kqv = settings.op_offload = False
    settings.n_threads = settings.n_threads_batch = 1
    context = llama.llama_init_from_model(loaded, settings)
    if not context:
        raise SystemExit(f"llama.cpp makes no context for {model}")
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index], batch.logits[index] = int(token), index, 1
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
    if llama.llama_decode(context, batch) != 0:
        raise SystemExit(f"llama.cpp does not run {model}")
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(loaded))
    rows = [
        np.ctypeslib.as_array(llama.llama_get_logits_ith(context, index), shape=(size,)).copy()
        for index in range(len(tokens))
    ]
    np.save(out, np.stack(rows))


def convert(source: str, folder: str, out: str) -> None:
    """A GGUF file of float32 as convert_hf_to_gguf.py writes it."""
    sys.path[:0] = [source, f"{source}/gguf-py", str(Path(__file__).parents[1] / "tests")]
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from support.gguf_files import add_tokenizer

    with torch.inference_mode():
        settings = ModelBase.load_hparams(Path(folder), False)
        kind = get_model_class(get_model_architecture(settings, ModelType.TEXT))
        model = kind(Path(folder), gguf.LlamaFileType.ALL_F32, Path(out))
        model.set_vocab = lambda: add_tokenizer(model.gguf_writer, settings["vocab_size"])
        model.write()


if __name__ == "__main__":
    {"logits": logits, "convert": convert}[sys.argv[1]](*sys.argv[2:])

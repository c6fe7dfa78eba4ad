"""Seconds and peak memory of capturing full-size models: `python benchmarks/capture.py [NAME…]`."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from typing import Any

# Sizes as published in the models' configurations.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            "vocab_size": 129280,
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "n_shared_experts": 1,
            "n_routed_experts": 256,
            "routed_scaling_factor": 2.5,
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "n_group": 8,
            "topk_group": 4,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "max_position_embeddings": 163840,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 40.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "max_position_embeddings": 40960,
        },
    ),
    "SmolLM2-135M": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
            "max_position_embeddings": 8192,
        },
    ),
}


def measure(name: str) -> None:
    """Captures one model in this process and prints a line."""
    from transformers import AutoConfig

    from ktc.capture import capture_language_model, meta_model, module_sites

    kind, settings = MODELS[name]
    config = AutoConfig.for_model(kind, **settings)
    start = time.perf_counter()
    model = meta_model(config, "bfloat16")
    built = time.perf_counter()
    captured = capture_language_model(model)
    done = time.perf_counter()
    billions, nodes = module_sites(model)[0].params / 1e9, len(captured.module.graph.nodes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name:16} {billions:7.1f} B  {config.num_hidden_layers:3} layers  {nodes:5} nodes"
        f"  model {built - start:5.2f} s  capture {done - built:5.2f} s  peak {peak:5.2f} GiB"
    )


def main() -> None:
    """Measures each model named on the command line, or all, in a process of its own."""
    unknown = [name for name in sys.argv[1:] if name not in MODELS]
    if unknown:
        sys.exit(f"unknown model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    for name in sys.argv[1:] or MODELS:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(name,))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)


if __name__ == "__main__":
    main()

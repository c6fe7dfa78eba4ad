"""Predicted speeds: floors from bytes and operations that are counted by hand, and limits that are made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ktc.passes.emit import emit
from support.compiling import compile_for, tiny
from support.gguf_files import write_gguf

from ktc import _cpu, machine
from ktc.cli import main
from ktc.machine import Limits, Measured
from ktc.predict import UNMEASURED, Load, predict
from ktc.runtime.segments import segments
from ktc.weights.formats import FLOAT_PRODUCTS

LIMITS = Limits("k", "2026-01-02T03:04:05+00:00", 1.0, (Measured(1, 1e9, 2, 1e12, 0.0, 1e10),))
CACHE = "rule cache { match model.layers[*].self_attn cache paged(dtype = f16, tokens = 96) }\n"


def compiled(name: str, rules: str = CACHE) -> tuple[Any, Any]:
    done = compile_for(tiny(name), rules)
    return done.context, emit(done.context)


def test_a_step_takes_as_long_as_its_slowest_limit() -> None:
    limit = LIMITS.runs[0]
    assert Load(2e9, 1e12, 0).seconds(limit) == 2
    assert Load(1e9, 3e12, 0).seconds(limit) == 3
    assert Load(0, 1e12, 1e10).seconds(limit) == 2
    assert Load(0, 0, 1e10).seconds(replace(limit, bf16=1e11)) == pytest.approx(0.1)
    assert Load(1e9, 1, 0).seconds(replace(limit, int8=0.0)) == float("inf")


def test_a_dense_model() -> None:
    context, placement = compiled("llama")
    config = context.config
    found = predict(context, placement, LIMITS)
    floor = found.devices["host"]
    embedding = next(w for w in context.weights.values() if w.name == "model.embed_tokens.weight")
    row = sum(store.nbytes for store in embedding.stores.values()) / config.vocab_size
    rest = sum(s.nbytes for w in context.weights.values() if w is not embedding for s in w.stores.values())
    assert floor.decode.nbytes == pytest.approx(rest + row)
    head = config.hidden_size // config.num_attention_heads
    entry = 2 * 2 * config.num_key_value_heads * head * config.num_hidden_layers
    assert floor.decode_full.nbytes - floor.decode.nbytes == pytest.approx(96 * entry)
    # Every matrix once a token, but those behind the last attention, which meet the last token alone.
    matrices = {
        w.name: w.shape[0] * w.shape[1]
        for w in context.weights.values()
        if len(w.shape) == 2 and w is not embedding
    }
    layer = f"model.layers.{config.num_hidden_layers - 1}."
    behind = [
        name
        for name in matrices
        if name == "lm_head.weight" or name.startswith((f"{layer}mlp.", f"{layer}self_attn.o_"))
    ]
    assert len(behind) == 5
    elements, last = sum(matrices.values()), sum(matrices[name] for name in behind)
    assert floor.decode.floats == 2 * elements and floor.decode.int8 == 0
    depth = 2 * config.num_attention_heads * head
    pairs = context.chunk * (context.chunk + 1) // 2
    attention = 2 * config.num_hidden_layers * depth * pairs
    assert floor.prefill.floats == 2 * (elements - last) * context.chunk + 2 * last + attention
    assert floor.prefill.nbytes <= sum(s.nbytes for w in context.weights.values() for s in w.stores.values())
    rates = found.rates()
    assert rates is not None and floor.seconds is not None
    assert rates[0] == pytest.approx(1 / floor.seconds[0]) and rates[1] < rates[0]
    assert rates[2] == pytest.approx(context.chunk / floor.seconds[2])


def test_experts_count_by_how_many_tokens_choose_them() -> None:
    context, placement = compiled("qwen3_moe")
    floor = predict(context, placement, LIMITS).devices["host"]
    experts = [w for w in context.weights.values() if len(w.shape) == 3]
    assert experts and all(0 < w.share < 1 for w in experts)
    held = sum(s.nbytes for w in experts for s in w.stores.values())
    saved = sum(s.nbytes for w in context.weights.values() for s in w.stores.values()) - floor.decode.nbytes
    assert saved >= held * (1 - experts[0].share) * 0.999
    # With as many tokens as a step has, every expert is read by some.
    alone = predict(replace_chunk(context, 1), placement, LIMITS).devices["host"]
    assert alone.prefill.nbytes == pytest.approx(alone.decode.nbytes)
    assert floor.prefill.nbytes > alone.prefill.nbytes


def replace_chunk(context: Any, chunk: int) -> Any:
    changed = replace(context)
    changed.chunk = chunk
    return changed


def test_windows_read_what_they_see() -> None:
    context, placement = compiled("gemma3_text")
    windows = [spec.window for spec in context.caches]
    assert any(0 < window < 96 for window in windows)
    floor = predict(context, placement, LIMITS).devices["host"]
    seen = sum(
        min(96, spec.window or 96) * spec.heads * (spec.key_dim + spec.value_dim) * 2
        for spec in context.caches
    )
    assert floor.decode_full.nbytes - floor.decode.nbytes == pytest.approx(seen)


def test_attention_counts_the_pairs_that_windows_show() -> None:
    context, placement = compiled("gemma3_text", CACHE + "rule all { match ** quant q8_0 }\n")
    config, tokens = context.config, 40
    floor = predict(replace_chunk(context, tokens), placement, LIMITS).devices["host"]
    pairs = sum(min(at + 1, spec.window or tokens) for spec in context.caches for at in range(tokens))
    assert any(0 < spec.window < tokens for spec in context.caches)
    assert floor.prefill.floats == 2 * 2 * config.num_attention_heads * config.head_dim * pairs


def test_quantised_products_count_as_int8() -> None:
    context, placement = compiled("llama", CACHE + "rule all { match ** quant q8_0 }\n")
    floor = predict(context, placement, LIMITS).devices["host"]
    assert all(w.format not in FLOAT_PRODUCTS for w in context.weights.values() if len(w.shape) == 2)
    config = context.config
    products = 2 * config.hidden_size * context.chunk * (context.chunk + 1) // 2 * config.num_hidden_layers
    assert floor.prefill.int8 > 0 and floor.prefill.floats == 2 * products


def test_what_is_not_known_is_said() -> None:
    context, placement = compiled("llama")
    found = predict(context, placement, None)
    assert found.rates() is None and found.unknown == UNMEASURED
    assert found.lines() == [f"predicted speed: unknown, {UNMEASURED}"]
    plain = found.to_json()
    assert plain["decode_tokens_per_second"] is None and plain["devices"]["host"]["decode_bytes"] > 0


def test_another_device_has_no_limits() -> None:
    rules = "device gpu = cuda:0 (memory = 1GiB)\nrule far { match model.layers[*].mlp place gpu }\n" + CACHE
    context = compile_for(tiny("llama"), rules, weights=False).context
    found = predict(context, emit(context), LIMITS)
    assert found.unknown == "the limits of gpu are not measured"
    assert found.devices["gpu"].seconds is None and found.devices["host"].seconds is not None


def test_segments_of_a_native_model() -> None:
    _, placement = compiled("llama")
    (only,) = segments(placement)
    assert only.native and only.ops > 0 and not only.reasons


def test_segments_with_a_kernel_of_torch_say_why() -> None:
    _, placement = compiled("llama", CACHE + "rule slow { match model.layers[*].mlp kernel torch.mul }\n")
    found = segments(placement)
    assert [segment.native for segment in found].count(False) >= 1
    reasons = {reason for segment in found for reason in segment.reasons}
    assert any("torch" in reason or "no native op" in reason for reason in reasons), reasons


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tiny("llama"), tmp_path / "m.gguf", "q8_0")
    text = f'model LlamaForCausalLM from "m.gguf"\ninclude "std/llama.kt"\ndevice host = cpu (memory = 1GiB)\n{CACHE}'
    path = tmp_path / "rules.kt"
    path.write_text(text + "rule everything { match ** place host }\n")
    return path


def test_plan_prints_predictions_from_the_cached_limits(
    rules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(rules)]) == 0
    shown = capsys.readouterr().out
    assert UNMEASURED in shown and "native segments: 1 with" in shown and "nothing is left to Python" in shown

    machine.save(replace(LIMITS, key=machine.key()))
    assert main(["plan", str(rules)]) == 0
    shown = capsys.readouterr().out
    assert "predicted at most: decode" in shown and "(" in shown and "with 96 tokens cached" in shown
    assert "1.0 GB/s, int8 1.00 TOPS with 1 thread, measured 2026-01-02T03:04:05+00:00" in shown

    assert main(["plan", str(rules), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    predicted, host = found["predicted"], found["predicted"]["devices"]["host"]
    assert predicted["bandwidth"] == 1e9 and predicted["threads"] == _cpu.threads()
    assert predicted["decode_tokens_per_second"] == pytest.approx(1 / host["seconds"]["decode"])
    # Of the plan's own column only the rounding of each weight's share is different.
    assert host["decode_bytes"] == pytest.approx(found["devices"]["host"]["decode_bytes"], abs=50)
    assert [segment["native"] for segment in found["segments"]] == [True]

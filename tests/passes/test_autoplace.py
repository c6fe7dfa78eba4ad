"""autoplace: fills the fastest device with what is read most, deterministically, and can be frozen."""

from __future__ import annotations

import pytest
import torch
from ktc.grammar.diagnostics import KtError
from ktc.passes.autoplace import freeze
from ktc.passes.reads import shares
from support.tiny_models import tiny_model

from ktc.capture import capture_language_model, meta_model

AUTO = """
device fast = cpu (memory = {size}MiB)
device host = cpu (memory = 1GiB)
rule everything {{ match ** place host }}
rule blocks {{ match model.layers[*].mlp place auto(fast, host) expect layers }}
"""


def places(done):
    return [done.context.place_of(f"model.layers.{i}.mlp.up_proj") for i in range(2)]


def test_what_fits_goes_to_the_first_device_and_the_rest_to_the_next(compiled):
    assert places(compiled(AUTO.format(size=64), bare=True)) == ["fast", "fast"]
    assert places(compiled(AUTO.format(size=6), bare=True)) == ["fast", "host"]
    assert places(compiled(AUTO.format(size=4), bare=True)) == ["host", "host"]


def test_the_plan_keeps_within_the_budget_that_was_shared_out(compiled):
    done = compiled(AUTO.format(size=6), bare=True)
    assert done.context.memory.devices["fast"].peak <= 6 * 2**20


def test_frozen_rules_give_the_same_placement(compiled):
    done = compiled(AUTO.format(size=6), bare=True)
    frozen = freeze(done.context)
    assert "match model.layers[0].mlp" in frozen and "place fast" in frozen
    plain = AUTO.format(size=6).partition("rule blocks")[0]
    again = compiled(plain + frozen, bare=True)
    assert places(again) == places(done)


def test_nothing_fits(compiled):
    text = AUTO.format(size=4).replace("auto(fast, host)", "auto(fast)")
    with pytest.raises(KtError) as caught:
        compiled(text, bare=True)
    assert (
        caught.value.diagnostics[0].code == "KT301" and "fits on none" in caught.value.diagnostics[0].message
    )


def test_logits_stay_the_same(same_logits):
    same_logits(AUTO.format(size=6), bare=True)


def test_experts_are_worth_less_than_dense_weights():
    """k of E experts, one row of an embedding, all of anything else."""
    config = tiny_model("qwen3_moe").config
    found = shares(capture_language_model(meta_model(config, torch.float32)).module.graph)
    assert found["model.layers.1.mlp.experts.down_proj"] == 2 / 4
    assert found["model.layers.1.self_attn.q_proj.weight"] == 1.0
    assert found["model.embed_tokens.weight"] == 1 / config.vocab_size

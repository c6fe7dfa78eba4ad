"""Small models of each family through a GGUF file: compiled with the family's library beside eager on the dequantised
weights, over a prefill and decode steps, for one sequence and for a ragged batch, in every weight format.

With float weights the kernels compute as eager does. Quantised weights meet activations rounded to int8 in blocks of
32, which moves the logits of these random models by about 2 %; so the compiled model is compared with eager as it is
(loosely), and with an eager model that rounds the inputs of its linear layers in the same way (closely). With the
reference kernels nothing is rounded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.eager import eager_from
from support.gguf_files import write_gguf
from support.tiny_models import tiny_model
from transformers import PreTrainedModel

import ktc
from ktc.api import load_compiled
from ktc.weights.source import open_source

FAMILIES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma3_text": ("Gemma3ForCausalLM", "gemma3"),
}
PROGRAM = """model {name} from "{path}"
include "std/{family}.kt"
device host = cpu (memory = 1GiB)
rule everything {{ match ** place host }}
rule cache {{ match @attention cache paged(dtype = f32, tokens = 256) }}
"""
EXACT = "rule exact { match ** : Linear kernel torch.linear }\n"
MIXED = {"attn_v": "q6_k", "ffn_down": "q6_k", "token_embd": "q8_0"}


class Case:
    """A model in a file, eager and compiled."""

    def __init__(self, architecture: str, format: str, folder: Path, extra: str = "", **changes: Any) -> None:
        formats = MIXED if format == "mixed" else None
        source = tiny_model(architecture, **changes)
        path = write_gguf(source, folder / "m.gguf", "q4_k" if formats else format, formats=formats)
        self.eager: PreTrainedModel = eager_from(open_source(path))
        name, family = FAMILIES[architecture]
        self.compiled, placement = ktc.compile(PROGRAM.format(name=name, family=family, path=path) + extra)
        self.model = load_compiled(self.compiled, placement)

    @property
    def fired(self) -> dict[str, int]:
        events = self.compiled.context.events
        return {e.stage.removeprefix("rewrite."): e.data["fired"] for e in events if e.data.get("fired")}

    @property
    def kernels(self) -> set[str]:
        return {e.data["kernel"] for e in self.compiled.context.events if e.kind == "lowered"}


def round_inputs(model: PreTrainedModel) -> None:
    """Makes every linear layer round what it reads to int8 in blocks of 32, scaled by its largest value."""

    def rounded(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        blocks = args[0].unflatten(-1, (-1, 32))
        scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
        return ((blocks / scale).round() * scale).flatten(-2)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded)


def steps(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, prefill: int) -> torch.Tensor:
    """Logits [batch, columns, vocabulary]: a prefill of the first columns, then one column a step; padding is zero."""
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache, found = None, []
    for start, stop in [(0, prefill), *((i, i + 1) for i in range(prefill, ids.shape[1]))]:
        with torch.no_grad():
            out = model(
                ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=positions[:, start:stop],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
        cache = out.past_key_values
        found.append(out.logits * mask[:, start:stop, None])
    return torch.cat(found, 1)


def errors(case: Case, ids: torch.Tensor, mask: torch.Tensor, prefill: int = 21) -> tuple[float, float]:
    """The relative error of all logits, and the smallest of one position's."""
    expected, got = (steps(model, ids, mask, prefill)[mask.bool()] for model in (case.eager, case.model))
    each = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float((got - expected).norm() / expected.norm()), float(each.min())


def error(case: Case, ids: torch.Tensor, mask: torch.Tensor, prefill: int = 21) -> float:
    """Relative error of all logits."""
    return errors(case, ids, mask, prefill)[0]


def sequence() -> tuple[torch.Tensor, torch.Tensor]:
    """29 tokens, more than the sliding window of 16 that the Gemma has."""
    ids = torch.randint(3, 500, (1, 29), generator=torch.Generator().manual_seed(4))
    return ids, torch.ones_like(ids)


def ragged() -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of 21, 2 and 13 tokens, padded on the left, and 8 more tokens each."""
    ids = torch.randint(3, 500, (3, 29), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :19] = 0
    mask[2, :8] = 0
    return ids, mask


def check_quantised(case: Case) -> None:
    """Near eager; and equal to eager with rounded inputs, until a value at the edge between two codes is rounded the
    other way, which costs as much as rounding does.
    """
    assert error(case, *sequence()) < 0.04
    round_inputs(case.eager)
    found = [errors(case, *inputs) for inputs in (sequence(), ragged())]
    assert max(whole for whole, _ in found) < 0.03
    assert min(best for _, best in found) < 2e-3


@pytest.mark.parametrize("architecture", FAMILIES)
def test_float_weights(architecture: str, tmp_path: Path) -> None:
    case = Case(architecture, "f32", tmp_path)
    assert error(case, *sequence()) < 1e-5
    assert error(case, *ragged()) < 1e-5
    layers = case.model.config.num_hidden_layers
    fired = case.fired
    if architecture == "gemma3_text":
        assert (
            fired["gelu_mul"] == layers
            and fired["merge_gate_up_gelu"] == layers
            and fired["merge_qkv"] == layers
        )
    else:
        assert fired["add_rms_norm"] == 2 * layers and fired["silu_mul"] == layers
        assert fired["merge_qkv_bias" if architecture == "qwen2" else "merge_qkv"] == layers
        assert fired["merge_gate_up_silu"] == layers
    assert not {k for k in case.kernels if k.startswith("torch.")} - {"torch.rotary"}


@pytest.mark.parametrize("format", ["q8_0", "q4_0", "q4_k", "q6_k", "mixed"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_quantised_weights(architecture: str, format: str, tmp_path: Path) -> None:
    case = Case(architecture, format, tmp_path)
    check_quantised(case)
    merged = "merge_qkv_bias" if architecture == "qwen2" else "merge_qkv"
    if format == "mixed":  # q and k are q4_k, v is q6_k: they stay apart
        assert merged not in case.fired
        plans = [w for w in case.compiled.context.weights.values() if w.parameters[0].endswith(".weight")]
        held = {w.parameters[0].split(".")[-2]: w.format for w in plans}
        assert (held["q_proj"], held["v_proj"], held["down_proj"]) == ("q4_k", "q6_k", "q6_k")
    else:
        assert case.fired[merged] == case.model.config.num_hidden_layers


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_other_families_quantised(architecture: str, tmp_path: Path) -> None:
    case = Case(architecture, "mixed", tmp_path)
    check_quantised(case)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3_text"])
def test_reference_kernels_are_exact_on_quantised_weights(architecture: str, tmp_path: Path) -> None:
    case = Case(architecture, "mixed", tmp_path, EXACT)
    assert "torch.linear" in case.kernels
    assert error(case, *ragged()) < 1e-5


def test_more_tokens_than_a_step(tmp_path: Path) -> None:
    """A prompt longer than one prefill step and several cache blocks."""
    case = Case("llama", "f32", tmp_path)
    object.__setattr__(case.model._runner, "prefill_chunk", 32)
    ids = torch.randint(3, 500, (1, 150), generator=torch.Generator().manual_seed(6))
    assert error(case, ids, torch.ones_like(ids), prefill=145) < 1e-5


def test_split_file(tmp_path: Path) -> None:
    """A model in several files is one model."""
    model = tiny_model("llama")
    first = write_gguf(model, tmp_path / "m.gguf", "f32", split=3)
    compiled, placement = ktc.compile(PROGRAM.format(name="LlamaForCausalLM", family="llama", path=first))
    ids, mask = sequence()
    expected, got = (steps(m, ids, mask, 21) for m in (model, load_compiled(compiled, placement)))
    assert float((got - expected).norm() / expected.norm()) < 1e-5

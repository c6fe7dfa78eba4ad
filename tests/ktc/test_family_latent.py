"""DeepSeek's latent attention: expanded, or absorbed by std/mla.kt, from either form of GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import LATENT, PREFILL, Case, ragged, sequence, steps
from support.gguf_files import Naming
from support.levels import float_activations

EXPANDED = "llama"  # a library with the same sets, which does not include std/mla.kt


def cache_bytes(case: Case) -> int:
    """Bytes of keys and values that one token takes in all layers."""
    pool = case.model._runner.engine.pool
    return int(pool.nbytes // pool.capacity)


@pytest.mark.parametrize("family", LATENT)
def test_absorbed_is_expanded(family: str, tmp_path: Path) -> None:
    """The same logits, from a cache of one latent and one rotated key a token instead of keys and values per head."""
    absorbed, expanded = Case(family, tmp_path, "f32"), Case(family, tmp_path, "f32", library=EXPANDED)
    config = absorbed.model.config
    assert absorbed.fired["mla"] == config.num_hidden_layers and "mla" not in expanded.fired
    for ids, mask in (sequence(), ragged()):
        left, right = (steps(case.model, ids, mask, PREFILL) for case in (absorbed, expanded))
        assert float((left - right).norm() / right.norm()) < 1e-5
    assert expanded.error(*ragged()) < 1e-5
    latent = config.kv_lora_rank + config.qk_rope_head_dim
    heads = config.num_attention_heads * (
        config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    )
    assert cache_bytes(absorbed) == 4 * config.num_hidden_layers * latent
    assert cache_bytes(expanded) == 4 * config.num_hidden_layers * heads


@pytest.mark.parametrize("format", ["f32", "q8_0", "mixed"])
@pytest.mark.parametrize("form", ["joined", "split"])
@pytest.mark.parametrize("library", ["", EXPANDED], ids=["absorbed", "expanded"])
def test_forms_of_the_file(library: str, form: str, format: str, tmp_path: Path) -> None:
    """`attn_kv_b` as older files have it, `attn_k_b` and `attn_v_b` as newer ones."""
    case = Case("deepseek_v3", tmp_path, format, library=library, gguf={"naming": Naming(latent=form)})
    names = set(case.source.headers())
    assert ("blk.0.attn_kv_b.weight" in names) == (form == "joined")
    assert ("blk.0.attn_k_b.weight" in names) == (form == "split")
    assert case.unused == ()
    case.round_inputs()
    with float_activations():
        errors = torch.cat([case.errors(*sequence()), case.errors(*ragged())])
    if format == "f32":
        assert errors.max() < 1e-5
    else:
        assert (errors < 1e-5).float().mean() > 0.1 and (errors < 0.03).float().mean() >= 0.95, errors


def test_absorbed_products_round_as_linears_do(tmp_path: Path) -> None:
    """With int8 activations in `w_key` and `w_value` too, the error stays what it is with them in the linears only."""
    medians = []
    for form in ("absorbed", "expanded"):
        rule = f'rule form {{ match @attention kernel cpu.mla_attention(form = "{form}") }}'
        case = Case("deepseek_v3", tmp_path, "q8_0", rule, gguf={"naming": Naming(latent="split")})
        medians.append(float(case.errors(*sequence()).median()))
    assert medians[0] < 1.5 * medians[1] < 0.1

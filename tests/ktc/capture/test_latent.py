"""Latent attention becomes kt.mla_expand and kt.attention where a trial shows that this is what the module does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from support.architectures import eager_model, tiny_config
from support.paging import PagedRun
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from ktc.capture import Captured, capture_language_model, meta_model
from ktc.capture.errors import CaptureError
from ktc.capture.latent import find_rotation

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "v2": ("deepseek_v2", {}),
    "v2 without q_lora": ("deepseek_v2", {"q_lora_rank": None}),
    "v2 yarn": ("deepseek_v2", {"rope_parameters": YARN}),
    "v3": ("deepseek_v3", {}),
    "v3 without q_lora": ("deepseek_v3", {"q_lora_rank": None}),
    "v3 yarn": ("deepseek_v3", {"rope_parameters": YARN}),
    "v3 halves": ("deepseek_v3", {"rope_interleave": False}),
    "v3 biases": ("deepseek_v3", {"attention_bias": True}),
}


def _census(captured: Captured) -> Counter[str]:
    return Counter(str(node.target) for node in captured.module.graph.nodes)


@pytest.mark.parametrize("name", CASES)
def test_prefill_and_decode_equal_eager(name: str) -> None:
    architecture, changes = CASES[name]
    config = tiny_config(architecture, layers=2, **changes)
    model, captured = eager_model(config), capture_language_model(meta_model(config), block_size=4)
    ops = _census(captured)
    assert ops["kt.mla_expand.default"] == ops["kt.attention.default"] == ops["kt.rope.default"] == 2
    ids = torch.randint(3, 250, (19,), generator=torch.Generator().manual_seed(0))
    run = PagedRun(captured, dict(model.state_dict()))
    found = torch.cat([run.step([ids[:13]])[0], *(run.step([ids[i : i + 1]])[0] for i in range(13, 19))])
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < 1e-5


def test_the_scale_is_the_modules_own() -> None:
    config = tiny_config("deepseek_v3", layers=2, rope_parameters=YARN)
    model = meta_model(config)
    scaling = model.model.layers[0].self_attn.scaling
    assert scaling > 24**-0.5
    captured = capture_language_model(model)
    for node in captured.module.graph.nodes:
        if str(node.target) == "kt.attention.default":
            assert node.args[9] == scaling


def test_the_chain_from_latent_to_attention() -> None:
    """What a rewrite to kt.mla_attention matches: linear of the normed latent, expansion, attention."""
    captured = capture_language_model(meta_model(tiny_config("deepseek_v2", layers=2)))
    attention = next(n for n in captured.module.graph.nodes if str(n.target) == "kt.attention.default")
    expand = attention.args[0].args[0]
    assert all(attention.args[i].args == (expand, i) for i in range(3))
    _, q_rope, kv, k_rope = expand.args
    rope = q_rope.args[0]
    assert (q_rope.args[1], k_rope.args) == (0, (rope, 1))
    assert kv.name == "layers_0_self_attn_kv_b_proj"
    assert kv.args[1].target == "model.layers.0.self_attn.kv_b_proj.weight"
    assert kv.args[0].name == "layers_0_self_attn_kv_a_layernorm"
    assert tuple(kv.args[0].meta["val"].shape[2:]) == (16,)
    assert [tuple(v.shape[3:]) for v in expand.meta["val"]] == [(24,), (24,), (16,)]
    assert expand.meta["site"] == attention.meta["site"] == "model.layers.0.self_attn"
    assert kv.meta["site"] == "model.layers.0.self_attn.kv_b_proj"


def test_frequencies_that_are_no_table_leave_the_attention_as_it_is() -> None:
    config = tiny_config("deepseek_v3", layers=2)
    captured = capture_language_model(meta_model(config))
    assert _census(captured)["kt.mla_expand.default"] == 2
    model = meta_model(config)
    model.model.rotary_emb.register_forward_hook(lambda module, args, out: tuple(1.0 * t for t in out))
    try:
        ops = _census(capture_language_model(model))
    except CaptureError as error:  # without its lift, older torch ties the table to the example's length
        pytest.skip(str(error))
    assert (ops["kt.mla_expand.default"], ops["kt.attention.default"]) == (0, 2)


class Louder(DeepseekV3Attention):
    """Doubles its values, which the forward in the dialect does not."""

    def expand_kv(self, kv_nope: torch.Tensor, k_rot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().expand_kv(kv_nope, k_rot)
        return keys, 2 * values


def test_another_attention_with_the_same_parts_is_refused() -> None:
    config = tiny_config("deepseek_v3", layers=2)
    assert find_rotation(DeepseekV3Attention(config, 0)) == ("full", True)
    assert find_rotation(Louder(config, 0)) is None


def test_deepseek_v3_at_full_size_is_captured_without_its_weights() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("deepseek_v3")
    captured = capture_language_model(meta_model(config, "bfloat16"))
    ops = _census(captured)
    assert ops["kt.mla_expand.default"] == ops["kt.attention.default"] == 61
    assert ops["kt.router.default"] == ops["kt.experts.default"] == 58
    router = next(n for n in captured.module.graph.nodes if str(n.target) == "kt.router.default")
    assert (router.kwargs["groups"], router.kwargs["kept_groups"], router.kwargs["top_k"]) == (8, 4, 8)

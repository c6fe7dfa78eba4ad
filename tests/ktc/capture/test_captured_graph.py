"""The form of a captured graph: names, metadata, parameters, ops."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support.architectures import ARCHITECTURES, eager_model, tiny_config

from ktc.capture import (
    Captured,
    CaptureError,
    allocate_caches,
    capture_language_model,
    materialise,
    meta_model,
)
from ktc.capture.captured import attribute
from ktc.dialect import Cost, node_cost

VIEWS = {"view", "transpose", "reshape", "getitem", "sym_size"}


@pytest.fixture(scope="module")
def llama() -> Captured:
    return capture_language_model(meta_model(tiny_config("llama", layers=2)))


def _census(captured: Captured) -> Counter[str]:
    names = []
    for node in captured.module.graph.nodes:
        if node.op == "call_method":
            names.append(node.target)
        elif node.op == "call_function":
            kt = str(node.target).startswith("kt.")
            names.append(
                str(node.target).removesuffix(".default") if kt else node.target.__name__.split(".")[0]
            )
    return Counter(names)


def test_llama_is_dialect_ops_and_views(llama: Captured) -> None:
    ops = {name: count for name, count in _census(llama).items() if name not in VIEWS}
    assert ops == {
        "kt.embedding": 1,
        "kt.rotary": 1,
        "kt.rms_norm": 5,
        "kt.linear": 15,
        "kt.rope": 2,
        "kt.attention": 2,
        "kt.add": 4,
        "kt.mul": 2,
        "kt.silu": 2,
        "index_select": 1,
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_lifted(name: str) -> None:
    captured = capture_language_model(meta_model(tiny_config(name, layers=2)))
    ops = _census(captured)
    moe = name in ("qwen2_moe", "qwen3_moe", "mixtral", "gpt_oss")
    first_dense = name in ("deepseek_v2", "deepseek_v3", "glm4_moe")
    assert ops["kt.attention"] == ops["kt.rope"] == 2
    assert ops["kt.rotary"] == (2 if name == "gemma3_text" else 1)
    assert ops["kt.experts"] == (2 if moe else 1 if first_dense else 0)
    assert ops["kt.rms_norm"] >= 5
    assert ops["kt.router"] == ops["kt.experts"]
    assert ops["kt.mla_expand"] == (2 if name.startswith("deepseek") else 0)
    assert ops["kt.expert_rows"] == (4 if name == "gpt_oss" else 0)
    assert ops["kt.deinterleave"] == (2 if name == "gpt_oss" else 0)
    assert not {"rsqrt", "cos", "sin", "softmax", "topk", "one_hot"} & set(ops)


def test_inputs_and_dims(llama: Captured) -> None:
    placeholders = [node for node in llama.module.graph.nodes if node.op == "placeholder"]
    assert tuple(node.target for node in placeholders) == llama.inputs
    assert llama.inputs == (
        *("input_ids", "positions", "seq_starts", "context_lens", "block_tables", "slots", "logits_index"),
    )
    shapes = {node.target: tuple(str(dim) for dim in node.meta["val"].shape) for node in placeholders}
    assert shapes["input_ids"] == shapes["positions"] == ("1", llama.dims["tokens"])
    assert shapes["block_tables"] == (llama.dims["sequences"], llama.dims["table_width"])
    assert llama.limits == {}


def test_every_node_knows_value_and_place(llama: Captured) -> None:
    for node in llama.module.graph.nodes:
        if node.op == "output":
            continue
        assert node.meta["val"] is not None, node
        stack = node.meta["stack"]
        assert all(isinstance(name, str) and isinstance(kind, str) for name, kind in stack)
        assert node.meta["site"] == stack[-1][0]
    place = {node.name: node for node in llama.module.graph.nodes}["layers_1_self_attn_q_proj"]
    assert place.meta["stack"] == (
        ("", "LlamaForCausalLM"),
        ("model", "LlamaModel"),
        ("model.layers.1", "LlamaDecoderLayer"),
        ("model.layers.1.self_attn", "LlamaAttention"),
        ("model.layers.1.self_attn.q_proj", "Linear"),
    )
    assert tuple(place.meta["val"].shape[2:]) == (64,)


def test_parameters_are_the_users_and_on_meta(llama: Captured) -> None:
    model = eager_model(tiny_config("llama", layers=2))
    assert set(llama.parameters) == set(model.state_dict())
    for name in llama.parameters:
        assert attribute(llama.module, name).is_meta
    inverse = attribute(llama.module, "model.rotary_emb.inv_freq")
    torch.testing.assert_close(inverse, model.model.rotary_emb.inv_freq)


def test_a_tied_parameter_keeps_its_first_name() -> None:
    config = tiny_config("llama", layers=2, tie_word_embeddings=True)
    captured = capture_language_model(meta_model(config))
    assert "lm_head.weight" not in captured.parameters
    head = next(node for node in captured.module.graph.nodes if node.name == "lm_head")
    assert head.args[1].target == "model.embed_tokens.weight"


def test_gemma_buffers_are_real() -> None:
    captured = capture_language_model(meta_model(tiny_config("gemma3_text", layers=2)))
    assert float(attribute(captured.module, "model.embed_tokens.embed_scale")) == 8.0
    for kind in ("sliding_attention", "full_attention"):
        values = attribute(captured.module, f"model.rotary_emb.{kind}_inv_freq")
        assert not values.is_meta
        assert float(values[0]) == 1.0


def test_dead_code_is_removed_but_nothing_that_writes(llama: Captured) -> None:
    for node in llama.module.graph.nodes:
        assert node.users or node.op in ("placeholder", "output"), f"{node} has no user"


def test_code_round_trips(llama: Captured) -> None:
    llama.module.graph.lint()
    assert "layers_1_mlp_down_proj = torch.ops.kt.linear.default(layers_1_mlp_mul" in llama.module.code


def test_cost_of_a_decode_step(llama: Captured) -> None:
    sizes = llama.step_sizes(tokens=1, context=100)
    total = Cost()
    for node in llama.module.graph.nodes:
        total = total + (node_cost(node, sizes, 100) or Cost())
    weights = {name: attribute(llama.module, name) for name in llama.parameters}
    linear = sum(w.numel() for name, w in weights.items() if w.dim() == 2 and "embed" not in name)
    assert total.weight_elements == linear + 64
    assert total.flops > 2 * linear


def test_materialise_names_what_is_missing_or_misshapen(llama: Captured) -> None:
    parameters = dict(eager_model(tiny_config("llama", layers=2)).state_dict())
    caches = allocate_caches(llama, 4)
    with pytest.raises(CaptureError, match=r"no tensor was given for kv\.0\.key"):
        materialise(llama, parameters)
    with pytest.raises(CaptureError, match=r"model\.norm\.weight has shape \(3,\), the graph wants \(64,\)"):
        materialise(llama, parameters | {"model.norm.weight": torch.ones(3)}, caches)
    with pytest.raises(CaptureError, match=r"no tensor was given for model\.norm\.weight"):
        materialise(llama, {k: v for k, v in parameters.items() if k != "model.norm.weight"}, caches)


def test_meta_model_leaves_the_configuration_alone() -> None:
    config = tiny_config("llama")
    before = config.to_dict()
    model = meta_model(config, "bfloat16")
    assert config.to_dict() == before
    assert next(model.parameters()).dtype == torch.bfloat16
    assert all(p.is_meta for p in model.parameters())


def test_a_model_built_otherwise_is_refused() -> None:
    with pytest.raises(CaptureError, match="not built with"):
        capture_language_model(eager_model(tiny_config("llama")))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}, "is not causal"),
        ("llama", {"layer_types": ["chunked_attention"] * 2}, "layers of type chunked_attention"),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, "slides by a mask only"),
    ],
)
def test_attention_that_the_op_does_not_express_is_refused(
    name: str, changes: dict[str, object], message: str
) -> None:
    config = tiny_config(name, layers=2)
    for key, value in changes.items():
        setattr(config, key, value)
    with pytest.raises(CaptureError, match=message):
        capture_language_model(meta_model(config))

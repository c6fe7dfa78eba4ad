"""What KTransformers' rule files may name: replacement classes, their ops, the kwargs each one takes, and its models.

Read from the archived part of github.com/kvcache-ai/ktransformers (`operators/*.py`, `models/modeling_*.py`): what
`__init__` takes by name counts as taken, what only `**kwargs` catches is swallowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OPERATORS_PACKAGE = "ktransformers.operators."
MODELS_PACKAGE = "ktransformers.models."
_DEVICES = frozenset({"generate_device", "prefill_device"})


@dataclass(frozen=True, slots=True)
class Op:
    """One entry of LINEAR_MAP or EXPERTS_MAP.

    Attributes:
        kind: "linear" or "experts".
        hardware: where it can run: "cpu", "gpu", "xpu", or "any".
        takes: kwargs of its own.
        kernel: ktc's kernel for the same, where a rule should name one.
        packs: the number format it turns weights into when it loads them, in words; "" for none.
    """

    kind: str
    hardware: str
    takes: frozenset[str] = frozenset()
    kernel: str | None = None
    packs: str = ""


_MARLIN = frozenset({"num_bits", "group_size", "act_order", "is_k_full"})
OPS: Mapping[str, Op] = {
    "KLinearMarlin": Op("linear", "gpu", _MARLIN, packs="4-bit Marlin blocks"),
    "VLinearMarlin": Op("linear", "gpu", _MARLIN, packs="4-bit Marlin blocks"),
    "KLinearTorch": Op("linear", "any"),
    "KLinearCPUInfer": Op(
        "linear", "cpu", frozenset({"out_device", "stride", "group_max_len"}), "cpu.linear"
    ),
    "KLinearFP8": Op("linear", "gpu", frozenset({"block_size"}), packs="FP8 blocks of 128"),
    "KLinearQ8": Op("linear", "any", packs="8-bit integers"),
    "KLinearIPEXLLM": Op("linear", "xpu", frozenset({"precision"}), packs="IPEX-LLM's 4-bit blocks"),
    "KExpertsCPU": Op("experts", "cpu", frozenset({"out_device", "backend"}), "cpu.experts"),
    "KExpertsMarlin": Op("experts", "gpu", packs="4-bit Marlin blocks"),
    "KExpertsTorch": Op("experts", "any"),
}
FORMER_OPS: Mapping[str, str] = {
    "MLPCPUExperts": "KExpertsCPU",
    "MLPCUDAExperts": "KExpertsMarlin",
    "MLPExpertsTorch": "KExpertsTorch",
    "QuantizedLinearMarlin": "KLinearMarlin",
    "QuantizedLinearTorch": "KLinearTorch",
}
"""Names that the tutorials still use, and what they became."""

BACKENDS = ("llamafile", "AMXInt8", "AMXBF16")
"""What KExpertsCPU knows as `backend`."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A class that a rule may put in a module's place.

    Attributes:
        kind: "linear", "experts", "attention", "model", "moe", "gate", "rope", "norm" or "mlp".
        takes: kwargs that its `__init__` names.
        generate_device, prefill_device: its defaults.
        generate_op, prefill_op: its defaults, None where it has no ops.
        mla: whether it is absorbed latent attention.
    """

    kind: str
    takes: frozenset[str] = _DEVICES
    generate_device: str = "cuda"
    prefill_device: str = "cuda"
    generate_op: str | None = None
    prefill_op: str | None = None
    mla: bool = False


_OPS = _DEVICES | {"generate_op", "prefill_op"}
_EXPERTS = Operator("experts", _OPS, "cpu", "cuda", "KExpertsCPU", "KExpertsTorch")
_CHUNKED = Operator("attention", _DEVICES | {"chunck_size"})
_MODEL = Operator("model", frozenset({"device", "per_layer_prefill_intput_threshold", "transfer_map"}))
_MOE, _ROPE, _NORM, _MLP = Operator("moe"), Operator("rope"), Operator("norm"), Operator("mlp")
DEFAULT_THRESHOLD = 30000
"""Prompt tokens above which a model class switches layers to their prefill ops, unless its rule says otherwise."""

OPERATORS: Mapping[str, Operator] = {
    "linear.KTransformersLinear": Operator("linear", _OPS, "cuda", "cuda", "KLinearMarlin", "KLinearTorch"),
    "experts.KTransformersExperts": _EXPERTS,
    "experts.KTransformersExpertsV2": _EXPERTS,
    "experts.KSmallthinkerExperts": _EXPERTS,
    "experts.KGlm4Experts": _EXPERTS,
    **{
        f"experts.{name}": _MOE
        for name in (
            *("KQwen2MoeSparseMoeBlock", "KQwen2MoeSparseMoeBlockV2", "KQwen3MoeSparseMoeBlockV2"),
            *("KDeepseekV2MoE", "KDeepseekV3MoE", "KDeepseekV3MoEV2", "KMistralSparseMoEBlock"),
            *("KSmallthinkerMoeBlock", "KGlm4MoeMoE", "KQwen3NextSparseMoeBlockV2"),
        )
    },
    "attention.KDeepseekV2Attention": Operator(
        "attention", _DEVICES | {"chunck_size", "absorb_for_prefill"}, mla=True
    ),
    "attention.KLlamaAttention": Operator("attention"),
    "attention.KQwen3MoeAttentionIPEXLLM": Operator("attention", _DEVICES | {"chunck_size"}, "xpu", "xpu"),
    "balance_serve_attention.flashinfer_attn": Operator("attention", _DEVICES | {"chunck_size"}, mla=True),
    "balance_serve_attention.deepseek_torch_attn": Operator(
        "attention", _DEVICES | {"chunck_size"}, mla=True
    ),
    **{
        f"balance_serve_attention.{name}": _CHUNKED
        for name in (
            *("KQwen2MoeAttention", "KQwen3MoeAttention", "KSmallthinkerAttention", "KGlm4MoeAttention"),
            *("KQwen3NextAttention", "KQwen3NextGatedDeltaNet"),
        )
    },
    **{f"models.{name}": _MODEL for name in ("KQwen2MoeModel", "KDeepseekV2Model", "KLlamaModel")},
    "gate.KMoEGate": Operator("gate"),
    "gate.KMoEGateQwen2Moe": Operator("gate", _OPS | {"use_quant"}),
    "gate.KMoEGateIPEXLLM": Operator("gate", _DEVICES, "xpu", "xpu"),
    **{
        f"RoPE.{name}": _ROPE
        for name in (
            *("RotaryEmbedding", "RotaryEmbeddingV2", "RotaryEmbeddingV3", "RotaryEmbeddingV4"),
            *("YarnRotaryEmbedding", "YarnRotaryEmbeddingV3", "DynamicNTKScalingRotaryEmbedding"),
            *("KQwen3MoeRotaryEmbedding", "KSmallthinkerRotaryEmbedding", "KGlm4MoeRotaryEmbedding"),
        )
    },
    **{
        f"layernorm.{name}": _NORM
        for name in (
            *("RMSNorm", "KQwen2MoeRMSNorm", "KQwen3MoeRMSNorm", "KQwen3NextRMSNorm"),
            *("KSmallthinkerRMSNorm", "KGlm4MoeRMSNorm", "DeepseekV3RMSNormTorch"),
        )
    },
    "layernorm.KDeepseekRMSNormIPEXLLM": Operator("norm", _DEVICES, "xpu", "xpu"),
    **{
        f"mlp.{name}": _MLP
        for name in ("kDeepseekV3MLP", "KQwen2MoeMLP", "KSmallthinkerDenseMlpBlock", "KGlm4MoeMLP")
    },
}
NPU_PREFIX = "ascend."
"""Operators of this subpackage exist, for Ascend NPUs; ktc has no kernels for those."""


def operator(path: str) -> Operator | None:
    """The class at a dotted path of a rule's `replace.class`, or None."""
    return OPERATORS.get(path.removeprefix(OPERATORS_PACKAGE)) if path.startswith(OPERATORS_PACKAGE) else None


def _named(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(prefix + name for name in names)


_PARTS = ("RMSNorm", "RotaryEmbedding", "MLP", "Attention", "DecoderLayer", "PreTrainedModel", "Model")
_ROTARIES = ("LinearScalingRotaryEmbedding", "DynamicNTKScalingRotaryEmbedding")
_HEADS = ("ForCausalLM", "ForSequenceClassification")
_DEEPSEEK = (*_PARTS, *_ROTARIES, *_HEADS, "YarnRotaryEmbedding", "MoE", "FlashAttention2")
MODEL_CLASSES: Mapping[str, tuple[str, ...]] = {
    "modeling_deepseek": (*_named("DeepseekV2", *_DEEPSEEK), "MoEGate"),
    "modeling_deepseek_v3": (*_named("DeepseekV3", *_DEEPSEEK), "MoEGate"),
    "modeling_mixtral": _named(
        "Mixtral", *_PARTS[:2], *_PARTS[3:], *_HEADS, "SparseMoeBlock", "BlockSparseTop2MLP",
        "FlashAttention2", "SdpaAttention",
    ),
    "modeling_qwen2_moe": _named(
        "Qwen2Moe", *_PARTS, *_HEADS, "SparseMoeBlock", "FlashAttention2", "SdpaAttention"
    ),
    "modeling_qwen3_moe": _named("Qwen3Moe", *_PARTS, *_HEADS, "SparseMoeBlock"),
    "modeling_llama": _named("Llama", *_PARTS, *_ROTARIES, *_HEADS, "FlashAttention2", "SdpaAttention"),
    "modeling_glm4_moe": _named("Glm4Moe", *_PARTS, "MoE", "TopkRouter", "ForCausalLM"),
}  # fmt: skip
"""Classes of the modelling files that KTransformers ships, by file."""

OTHER_MODELS = ("modeling_smallthinker", "modeling_qwen3_next", "custom_modeling_", "ascend.")
"""Modelling files whose classes are not listed here: models that ktc does not compile, and servers' variants."""

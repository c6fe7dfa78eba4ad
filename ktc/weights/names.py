"""Which GGUF tensors make a Hugging Face parameter: names, the way experts are put together, and the transforms.

The base is the gguf package's own name map, read from parameter to tensor. What it does not map (fused experts, the
router's correction bias, GPT-OSS biases and sinks) is the table below; `transforms` undoes what llama.cpp's converter
did. Files of older converters name some tensors otherwise: `ways_of` gives every way to make a parameter, best first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import gguf

from ktc.errors import UnsupportedModelError
from ktc.weights.recipe import AddConstant, InterleaveHalves, Transform
from ktc.weights.views import AnyView, ExpertColumns, Interleave

GGUF_ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = MappingProxyType(
    {
        "llama": gguf.MODEL_ARCH.LLAMA,
        "internlm2": gguf.MODEL_ARCH.INTERNLM2,
        "qwen2": gguf.MODEL_ARCH.QWEN2,
        "qwen3": gguf.MODEL_ARCH.QWEN3,
        "gemma3": gguf.MODEL_ARCH.GEMMA3,
        "qwen2moe": gguf.MODEL_ARCH.QWEN2MOE,
        "qwen3moe": gguf.MODEL_ARCH.QWEN3MOE,
        "deepseek2": gguf.MODEL_ARCH.DEEPSEEK2,
        "gpt-oss": gguf.MODEL_ARCH.GPT_OSS,
        "glm4moe": gguf.MODEL_ARCH.GLM4_MOE,
    }
)
"""The `general.architecture` values whose tensor names are known; Mistral is a "llama", Mixtral one with experts."""

_GATE_UP = ("ffn_gate_exps", "ffn_up_exps")
_SINGLE_EXPERTS: Mapping[str, tuple[str, ...]] = {
    "mlp.experts.gate_up_proj": ("ffn_gate", "ffn_up"),
    "mlp.experts.down_proj": ("ffn_down",),
}
_GPT_OSS_VIEWS: Mapping[str, AnyView] = {
    "mlp.experts.gate_up_proj": ExpertColumns(interleaved=True),
    "mlp.experts.gate_up_proj_bias": Interleave(),
    "mlp.experts.down_proj": ExpertColumns(),
}
_LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<rest>.+)")
_BY_HAND: Mapping[str, tuple[tuple[str, ...], str]] = {
    "mlp.experts.gate_up_proj": (_GATE_UP, ".weight"),
    "mlp.experts.gate_up_proj_bias": (_GATE_UP, ".bias"),
    "mlp.experts.down_proj": (("ffn_down_exps",), ".weight"),
    "mlp.experts.down_proj_bias": (("ffn_down_exps",), ".bias"),
    "mlp.gate.e_score_correction_bias": (("exp_probs_b",), ".bias"),
    "self_attn.sinks": (("attn_sinks",), ".weight"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors a parameter is made of.

    Attributes:
        tensors: for each piece in order, the names it may have, best first.
        axis: along which the pieces are put together; 1 for gate and up within each expert.
        view: what makes the parameter of the pieces: GPT-OSS's class holds its experts' matrices transposed.
    """

    tensors: tuple[tuple[str, ...], ...]
    axis: int = 0
    view: AnyView | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that is looked for."""
        return tuple(name for names in self.tensors for name in names)


@lru_cache(maxsize=16)
def _name_map(architecture: str, layers: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(GGUF_ARCHITECTURES[architecture], layers)


def source_of(parameter: str, architecture: str, layers: int) -> Source | None:
    """The tensors of a parameter; None when the architecture has no tensor for it.

    Args:
        parameter: the name in the Hugging Face model, e.g. "model.layers.0.self_attn.q_proj.weight".
        architecture: `general.architecture`.
        layers: number of decoder layers.
    Raises:
        UnsupportedModelError: the architecture is not in GGUF_ARCHITECTURES.
    """
    if architecture not in GGUF_ARCHITECTURES:
        raise UnsupportedModelError(
            f"GGUF architecture {architecture!r} is not supported",
            tensor="general.architecture",
            hint=f"ktc knows {', '.join(GGUF_ARCHITECTURES)}",
        )
    if parameter == "lm_head.weight":
        return Source((("output.weight", "token_embd.weight"),))
    if match := _LAYER.fullmatch(parameter):
        by_hand = _BY_HAND.get(match["rest"])
        if by_hand is not None:
            if int(match["layer"]) >= layers:
                return None
            stems, suffix = by_hand
            pieces = tuple((f"blk.{match['layer']}.{stem}{suffix}",) for stem in stems)
            view = _GPT_OSS_VIEWS.get(match["rest"]) if architecture == "gpt-oss" else None
            return Source(pieces, 1 if len(pieces) > 1 else 0, view)
    name = _name_map(architecture, layers).get_name(parameter, try_suffixes=(".weight", ".bias"))
    return Source(((name,),)) if name is not None else None


def ways_of(parameter: str, shape: Sequence[int], architecture: str, layers: int) -> list[Source]:
    """Every way to make a parameter, best first; none when the architecture has no tensor for it.

    Beside `source_of`'s: the converter can put gate and up of the experts in one tensor, blk.N.ffn_gate_up_exps, and
    Mixtral's first files hold one tensor for each expert, blk.N.ffn_gate.E.

    Args: as `source_of`; shape: the parameter's, whose first size counts the experts.
    """
    first = source_of(parameter, architecture, layers)
    match = _LAYER.fullmatch(parameter)
    if first is None or match is None:
        return [] if first is None else [first]
    ways, rest = [first], match["rest"]
    if rest in ("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias"):
        suffix = "bias" if rest.endswith("_bias") else "weight"
        ways.append(Source(((f"blk.{match['layer']}.ffn_gate_up_exps.{suffix}",),), view=first.view))
    if rest in _SINGLE_EXPERTS and architecture == "llama" and len(shape) == 3:
        stems = _SINGLE_EXPERTS[rest]
        names = (f"blk.{match['layer']}.{stem}.{e}.weight" for e in range(shape[0]) for stem in stems)
        ways.append(Source(tuple((name,) for name in names)))
    return ways


_LATENT = re.compile(r"model\.layers\.(?P<layer>\d+)\.self_attn\.kv_b_proj\.weight")


def latent_halves(parameter: str, architecture: str) -> tuple[str, str] | None:
    """The names of DeepSeek's kv_b in two parts, (keys, values), as files for absorbed attention have it; else None."""
    match = _LATENT.fullmatch(parameter) if architecture == "deepseek2" else None
    if match is None:
        return None
    return f"blk.{match['layer']}.attn_k_b.weight", f"blk.{match['layer']}.attn_v_b.weight"


_Q_OR_K = re.compile(r"blk\.\d+\.attn_(?P<which>[qk])\.(?:weight|bias)")


def transforms(tensor: str, architecture: str, heads: int, key_value_heads: int) -> tuple[Transform, ...]:
    """What undoes llama.cpp's conversion of one tensor.

    Args:
        tensor: GGUF name.
        architecture: `general.architecture`.
        heads: query heads. key_value_heads: key and value heads.
    """
    if architecture in ("llama", "internlm2") and (match := _Q_OR_K.fullmatch(tensor)):
        return (InterleaveHalves(heads if match["which"] == "q" else key_value_heads),)
    if architecture == "gemma3" and tensor.endswith("norm.weight"):
        return (AddConstant(-1.0),)
    return ()

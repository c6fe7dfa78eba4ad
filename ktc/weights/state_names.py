"""Where a parameter is found among tensors that bear Hugging Face names: checkpoints and state dicts.

Mostly under its own name. Checkpoints of mixture-of-experts models hold one matrix an expert, which transformers 5
keeps fused; GPT-OSS's experts lie there by rows in MXFP4; InternLM2 has names of its own; a checkpoint of the bare
model lacks the "model." prefix; tied embeddings are stored once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from ktc.weights import internlm2
from ktc.weights.binding import Collector, Way
from ktc.weights.published import joined_weights
from ktc.weights.source import Binding
from ktc.weights.tensor import TensorHeader
from ktc.weights.views import ExpertColumns

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_EXPERTS = re.compile(r"(?P<layer>.+\.)mlp\.experts\.(?P<which>gate_up_proj|down_proj)")
_ROUTER = re.compile(r"(?P<layer>.+\.)mlp\.gate\.weight")
_PER_EXPERT: Mapping[str, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {
        "gate_up_proj": (
            ("mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"),
            ("block_sparse_moe.experts.{e}.w1.weight", "block_sparse_moe.experts.{e}.w3.weight"),
        ),
        "down_proj": (("mlp.experts.{e}.down_proj.weight",), ("block_sparse_moe.experts.{e}.w2.weight",)),
    }
)


def bind_state(
    headers: Mapping[str, TensorHeader],
    parameters: Mapping[str, tuple[int, ...]],
    config: PreTrainedConfig | None,
) -> Binding:
    """Binds parameters to tensors of Hugging Face names.

    Args:
        headers: the tensors. parameters: name and shape in the model.
        config: the model's: whether `lm_head.weight` is the embedding, how many heads and layers there are.
    """
    joined = joined_weights(headers)
    found = Collector(headers, joined.weights, joined.broken)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    for parameter, size in parameters.items():
        shape = tuple(size)
        ways = [Way([_own_names(parameter, tied)])]
        weight = joined.weights.get(parameter)
        if weight is not None and weight.format == "mxfp4" and len(shape) == 3:
            ways = [Way([[parameter]], view=ExpertColumns(), shape=(shape[0], shape[2], shape[1]))]
        found.add(
            parameter, shape, [*ways, *_per_expert(parameter, shape), *_internlm2(parameter, shape, config)]
        )
    layers = getattr(config, "num_hidden_layers", None)
    return found.binding(layers=layers if isinstance(layers, int) else None)


def _own_names(parameter: str, tied: bool) -> list[str]:
    own = [parameter, parameter.removeprefix("model.")]
    if parameter == "lm_head.weight" and tied:
        own += ["model.embed_tokens.weight", "embed_tokens.weight"]
    if match := _ROUTER.fullmatch(parameter):
        own.append(f"{match['layer']}block_sparse_moe.gate.weight")
    if published := internlm2.published_name(parameter):
        own.append(published)
        if parameter == "lm_head.weight" and tied:
            own.append("model.tok_embeddings.weight")
    return list(dict.fromkeys(own))


def _per_expert(parameter: str, shape: tuple[int, ...]) -> list[Way]:
    """One matrix an expert: [rows, columns] each, gate before up."""
    match = _EXPERTS.fullmatch(parameter)
    if match is None or len(shape) != 3:
        return []
    return [
        Way([(match["layer"] + p.format(e=expert),) for expert in range(shape[0]) for p in patterns])
        for patterns in _PER_EXPERT[match["which"]]
    ]


def _internlm2(parameter: str, shape: tuple[int, ...], config: PreTrainedConfig | None) -> list[Way]:
    found = internlm2.rows_of(parameter, shape, config)
    return [] if found is None else [Way([[found[0]]], view=found[1], shape=found[2])]

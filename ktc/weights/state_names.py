"""Where a parameter is found among tensors that bear Hugging Face names: checkpoints and state dicts.

Mostly under its own name. Checkpoints of mixture-of-experts models hold one matrix an expert, which
transformers 5 keeps fused; a checkpoint of the bare model lacks the "model." prefix; tied embeddings are
stored once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from ktc.weights.binding import Collector, Way
from ktc.weights.source import Binding
from ktc.weights.tensor import TensorHeader

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
    headers: Mapping[str, TensorHeader], parameters: Mapping[str, tuple[int, ...]], *, tied: bool
) -> Binding:
    """Binds parameters to tensors of Hugging Face names.

    Args:
        headers: the tensors. parameters: name and shape in the model.
        tied: whether `lm_head.weight` is the embedding (`tie_word_embeddings`).
    """
    found = Collector(headers)
    for parameter, shape in parameters.items():
        found.add(
            parameter, tuple(shape), [Way(pieces) for pieces in _candidates(parameter, tuple(shape), tied)]
        )
    return found.binding()


def _candidates(parameter: str, shape: tuple[int, ...], tied: bool) -> list[list[tuple[str, ...]]]:
    """Ways to make the parameter, best first; each a list of pieces with their possible names."""
    own = [parameter, parameter.removeprefix("model.")]
    if parameter == "lm_head.weight" and tied:
        own += ["model.embed_tokens.weight", "embed_tokens.weight"]
    if match := _ROUTER.fullmatch(parameter):
        own.append(f"{match['layer']}block_sparse_moe.gate.weight")
    ways = [[tuple(dict.fromkeys(own))]]
    if (match := _EXPERTS.fullmatch(parameter)) and len(shape) == 3:
        for patterns in _PER_EXPERT[match["which"]]:
            ways.append(
                [
                    (match["layer"] + pattern.format(e=expert),)
                    for expert in range(shape[0])
                    for pattern in patterns
                ]
            )
    return ways

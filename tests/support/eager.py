"""The model of transformers with a source's dequantised weights: what compiled models are compared with."""

from __future__ import annotations

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from ktc.weights.convert import dequantize
from ktc.weights.source import WeightSource


def eager_from(source: WeightSource) -> PreTrainedModel:
    """The eager model in float32 with every weight that `source` holds, dequantised.

    Raises:
        ValueError: a parameter without a tensor, or a tensor without a parameter.
    """
    config = source.config()
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(p.shape) for name, p in shell.named_parameters(remove_duplicate=False)}
    binding = source.bind(shapes, config)
    if binding.errors() or binding.unused:
        raise ValueError(f"{source.path}: {binding.errors()}, unused {binding.unused}")
    state = {}
    for name, recipe in binding.recipes.items():
        raw = source.read(recipe)
        state[name] = torch.from_numpy(dequantize(raw.data, raw.format, raw.shape))
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    kind = getattr(transformers, config.architectures[0])
    model: PreTrainedModel = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()

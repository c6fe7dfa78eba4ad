"""Builds a language model of a configuration on the meta device, ready for capture."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ktc.capture import interfaces
from ktc.capture.buffers import realise_buffers


def meta_model(config: PretrainedConfig, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """The causal language model of `config`: parameters on the meta device, non-persistent buffers real.

    Args:
        config: of an architecture that transformers knows; it is not changed.
        dtype: of the parameters, "float32" or torch.float32.

    Raises:
        CaptureError: a buffer's value cannot be known without weights.
        ValueError: transformers has no causal language model for the configuration.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            copy.deepcopy(config),
            dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
            attn_implementation=interfaces.NAME,
            experts_implementation=interfaces.NAME,
        )
    model.train(False)
    realise_buffers(model)
    return model

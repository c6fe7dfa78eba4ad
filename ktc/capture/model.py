"""Builds a language model of a configuration on the meta device, ready for capture."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ktc.capture import interfaces
from ktc.capture.buffers import realise_buffers
from ktc.capture.errors import CaptureError


def meta_model(config: PretrainedConfig, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """The causal language model of `config`: parameters on the meta device, non-persistent buffers real.

    Args:
        config: of an architecture that transformers knows; it is not changed.
        dtype: of the parameters, "float32" or torch.float32.

    Raises:
        CaptureError: a buffer's value cannot be known without weights, or attention is the model's own.
        ValueError: transformers has no causal language model for the configuration.
    """
    try:
        model = _build(config, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    except KeyError as error:
        if error.args != (interfaces.NAME,):
            raise
        raise CaptureError(
            f"models of type {config.model_type!r} do not go through transformers' attention interface"
        ) from error
    model.train(False)
    realise_buffers(model)
    return model


def _build(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            copy.deepcopy(config),
            dtype=dtype,
            attn_implementation=interfaces.NAME,
            experts_implementation=interfaces.NAME,
        )
    return model

"""The model of transformers in float32 on a source's dequantised weights: what compiled models are compared with.

Nothing of it goes through capture, passes or kernels; only the bytes are read by the same `WeightSource`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ktc.capture.buffers import realise_buffers
from ktc.errors import KtcError
from ktc.machine import available_memory
from ktc.weights.convert import dequantize
from ktc.weights.source import WeightSource

Progress = Callable[[int, int], None]
FLOAT = 4
"""Bytes of a float32."""


def eager_model(
    source: WeightSource, progress: Progress | None = None, *, reserve: int = 0
) -> PreTrainedModel:
    """The eager model of a source, in eval mode: float32, transformers' own attention and experts.

    Args:
        source: configuration and weights.
        progress: called with (bytes loaded, bytes in all).
        reserve: bytes that the caller needs beside the model.

    Raises:
        KtcError: the memory that is free does not hold the model in float32.
        WeightError: a parameter without a tensor, or a tensor that does not fit.
    """
    config = source.config()
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        )
    realise_buffers(model)
    state = model.state_dict()
    binding = source.bind({name: tuple(value.shape) for name, value in state.items()}, config)
    for problem in binding.errors():
        raise problem
    tied = {name for names in _shared(model) for name in names[1:]}
    sizes = {name: FLOAT * value.numel() for name, value in state.items() if name not in tied}
    total = sum(sizes.values())
    check_memory(total + max(sizes.values(), default=0) + reserve, source)
    done = 0
    loaded = {}
    for name, size in sizes.items():
        raw = source.read(binding.recipes[name])
        loaded[name] = torch.from_numpy(dequantize(raw.data, raw.format, raw.shape, tensor=name))
        done += size
        if progress is not None:
            progress(done, total)
    model.load_state_dict(loaded, strict=False, assign=True)
    model.tie_weights()
    model.train(False).requires_grad_(False)
    return model


def check_memory(needed: int, source: WeightSource) -> None:
    """Raises KtcError when less than `needed` bytes are free."""
    free = available_memory()
    if free is not None and needed > free:
        gib = 2**30
        raise KtcError(
            f"the eager model of {source.path} takes {needed / gib:.1f} GiB in float32, and {free / gib:.1f} GiB are "
            "free",
            hint="compare two programs with each other: `ktc verify FILE --against OTHER.kt` needs no eager model",
        )


def _shared(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one tensor under several names."""
    by_tensor: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_tensor.setdefault(id(parameter), []).append(name)
    return [names for names in by_tensor.values() if len(names) > 1]

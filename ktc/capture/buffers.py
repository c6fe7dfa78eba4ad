"""Real values for the non-persistent buffers of a model on the meta device: `inv_freq`, `embed_scale`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ktc.capture.errors import CaptureError


def realise_buffers(model: Any) -> None:
    """Computes every non-persistent meta buffer on the CPU, in place, as the model's `_init_weights` does.

    Args:
        model: a PreTrainedModel.

    Raises:
        CaptureError: `_init_weights` does not write one of them, so its value is unknown.
    """
    for name, module in model.named_modules():
        buffers = [
            key
            for key in module._non_persistent_buffers_set
            if module._buffers.get(key) is not None and module._buffers[key].is_meta
        ]
        if not buffers:
            continue
        for key in buffers:
            module._buffers[key] = _poisoned(module._buffers[key])
        with torch.no_grad():
            model._init_weights(module)
        for key in buffers:
            _check_written(module, name, key)


def _poisoned(like: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of a value that no buffer has, to see whether it was written."""
    real = torch.empty(like.shape, dtype=like.dtype, device="cpu")
    if like.dtype == torch.bool:
        return real.fill_(False)
    return real.fill_(
        torch.nan if like.is_floating_point() or like.is_complex() else torch.iinfo(like.dtype).min
    )


def _check_written(module: nn.Module, name: str, key: str) -> None:
    value = module._buffers[key]
    if value is None or value.dtype == torch.bool:
        return
    unwritten = value.isnan() if value.is_floating_point() else value == _poisoned(value)
    if bool(unwritten.any()):
        raise CaptureError(
            f"buffer {key!r} is not in a checkpoint and {type(module).__name__} does not say its value",
            module=name,
            hint="capture a model that was built with real weights instead of one on the meta device",
        )

"""Layers through which tokens of a flat batch would see each other are refused, work on rows is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.architectures import tiny_config
from torch import nn
from transformers import FalconConfig

from ktc.capture import CaptureError, capture_language_model, meta_model


class Rows(nn.Module):
    """Applies a function to hidden states [1, T, 64]."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


MIXING: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "mean over tokens": (lambda x: x - x.mean(1, keepdim=True), "reduces over the tokens"),
    "largest of all": (lambda x: x / x.abs().max(), "reduces over the tokens"),
    "pairs of tokens": (lambda x: x + (x[..., :1] - x[..., 0][:, None]).mean(-1, True), "compares tokens"),
    "token shift": (lambda x: torch.cat((torch.zeros(1, 1, 64), x[:, :-1]), dim=1), "shifts or pads"),
    "convolution": (lambda x: F.conv1d(x.mT, torch.ones(64, 1, 1), groups=64).mT, "looks along"),
    "running sum": (lambda x: x.cumsum(1), "looks along"),
}
ROW_BY_ROW: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean over channels": lambda x: x - x.mean(-1, keepdim=True),
    "heads": lambda x: x.view(1, -1, 4, 16).transpose(1, 2).softmax(-1).transpose(1, 2).reshape(1, -1, 64),
    "flattened": lambda x: x.reshape(-1, 32).tanh().view(x.shape),
    "selected channels": lambda x: x.topk(64, dim=-1)[0][..., torch.arange(64).flip(0)],
}


def _with_mlp(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = meta_model(tiny_config("llama", layers=2))
    model.model.layers[1].mlp = Rows(function)
    capture_language_model(model)


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_refused(name: str) -> None:
    function, message = MIXING[name]
    with pytest.raises(CaptureError, match=message) as caught:
        _with_mlp(function)
    assert caught.value.module == "model.layers.1.mlp"


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_work_on_rows_is_captured(name: str) -> None:
    _with_mlp(ROW_BY_ROW[name])


def test_a_layer_without_attention_is_refused() -> None:
    model = meta_model(tiny_config("llama", layers=3))
    model.model.layers[1] = Rows(torch.tanh)
    model.model.layers[1].forward = lambda x, **other: x  # type: ignore[method-assign]
    with pytest.raises(CaptureError, match="layers 1 have no attention"):
        capture_language_model(model)


def test_architectures_with_attention_of_their_own_are_refused() -> None:
    with pytest.raises(CaptureError, match="'falcon' do not go through"):
        meta_model(FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))

"""Non-persistent buffers of meta models get the values that a real model has, or an error."""

from __future__ import annotations

import pytest
import torch
from support.architectures import ARCHITECTURES, eager_model, tiny_config

from ktc.capture import CaptureError, meta_model
from ktc.capture.buffers import realise_buffers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_buffers_equal_those_of_a_real_model(name: str) -> None:
    config = tiny_config(name, layers=2)
    real = dict(eager_model(config).named_buffers())
    found = dict(meta_model(config).named_buffers())
    assert set(found) == set(real)
    values = {key: buffer for key, buffer in found.items() if not buffer.is_meta}
    assert values
    for key, buffer in values.items():
        torch.testing.assert_close(buffer, real[key], rtol=0, atol=0)


def test_a_buffer_that_nobody_writes_is_an_error() -> None:
    model = meta_model(tiny_config("llama", layers=2))
    lost = torch.empty(3, device="meta")
    model.model.layers[1].mlp.register_buffer("table", lost, persistent=False)
    with pytest.raises(CaptureError, match="buffer 'table' is not in a checkpoint") as caught:
        realise_buffers(model)
    assert caught.value.module == "model.layers.1.mlp"

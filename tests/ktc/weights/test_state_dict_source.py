"""Weights in memory: views of the tensors, tied parameters, dtypes that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_model

from ktc.errors import UnsupportedFormatError, WeightError
from ktc.weights.state_dict import StateDictSource


def test_parameters_are_views() -> None:
    model = tiny_model("qwen2")
    source = StateDictSource(model.state_dict(), model.config)
    binding = source.bind({name: tuple(p.shape) for name, p in model.named_parameters()}, model.config)
    assert not binding.errors()
    for name, parameter in model.named_parameters():
        raw = source.read(binding.recipes[name])
        assert raw.format == "f32" and raw.data.ctypes.data == parameter.data_ptr()
        assert np.array_equal(raw.data.view("<f4").reshape(raw.shape), parameter.detach().numpy())


def test_bfloat16_and_strided_tensors() -> None:
    values = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t()
    source = StateDictSource({"w": values})
    raw = source.read(source.bind({"w": (3, 2)}).recipes["w"])
    assert raw.format == "bf16"
    assert torch.equal(torch.from_numpy(raw.data.copy()).view(torch.bfloat16).reshape(3, 2), values)


def test_tied_head_may_be_missing() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    source = StateDictSource(state, model.config)
    recipe = source.bind({"lm_head.weight": (512, 256)}, source.config()).recipes["lm_head.weight"]
    assert [header.name for header in recipe.headers] == ["model.embed_tokens.weight"]
    assert "lm_head.weight" in source.bind({"lm_head.weight": (512, 256)}).missing


def test_config_is_a_copy() -> None:
    model = tiny_model("llama")
    source = StateDictSource({}, model.config)
    source.config().hidden_size = 1
    assert source.config().hidden_size == 256
    with pytest.raises(WeightError, match="without a configuration"):
        StateDictSource({}).config()


def test_what_has_no_bytes_is_refused() -> None:
    with pytest.raises(UnsupportedFormatError, match="meta device"):
        StateDictSource({"w": torch.empty(2, device="meta")})
    with pytest.raises(UnsupportedFormatError, match="complex64"):
        StateDictSource({"w": torch.zeros(2, dtype=torch.complex64)})


def test_foreign_headers_are_refused() -> None:
    source, other = StateDictSource({"w": torch.ones(2)}), StateDictSource({"w": torch.zeros(2)})
    with pytest.raises(WeightError, match="not of this source"):
        source.read(other.bind({"w": (2,)}).recipes["w"])

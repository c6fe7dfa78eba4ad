"""Generation defaults from the source of a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SIZES
from small_tokenizers import byte_level
from transformers import GenerationConfig, LlamaConfig

from ktc.runtime.generation import generation_defaults, stop_ids


def test_ids_of_the_config_and_the_tokenizer() -> None:
    settings = generation_defaults(LlamaConfig(**{**SIZES, "eos_token_id": [5, 6]}), byte_level())
    assert settings.eos_token_id == [5, 6, 1]
    assert (settings.pad_token_id, settings.bos_token_id) == (0, 1)


def test_padding_falls_back_to_the_end_token() -> None:
    config = LlamaConfig(**{**SIZES, "eos_token_id": 7, "pad_token_id": None})
    assert generation_defaults(config, byte_level()).pad_token_id == 7
    assert generation_defaults(config).eos_token_id == 7


def test_the_folder_decides_where_it_says_something(tmp_path: Path) -> None:
    GenerationConfig(eos_token_id=[9, 1], do_sample=True, top_k=7, pad_token_id=3).save_pretrained(tmp_path)
    settings = generation_defaults(LlamaConfig(**SIZES), byte_level(), tmp_path)
    assert (settings.eos_token_id, settings.do_sample, settings.top_k) == ([9, 1], True, 7)
    assert settings.pad_token_id == 3
    (tmp_path / "generation_config.json").unlink()
    assert generation_defaults(LlamaConfig(**SIZES), None, tmp_path).eos_token_id == 2


@pytest.mark.parametrize("eos", [None, 4, [4, 5], torch.tensor(4), torch.tensor([4, 5])])
def test_stop_ids(eos: int | list[int] | torch.Tensor | None) -> None:
    expected = [] if eos is None else torch.atleast_1d(torch.as_tensor(eos)).tolist()
    assert stop_ids(eos) == expected

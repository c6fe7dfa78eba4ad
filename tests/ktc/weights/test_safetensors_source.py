"""Hugging Face folders: one file and shards, per-expert matrices, tied weights, and hostile headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.gguf_files import write_gguf, write_safetensors_folder
from support.real_models import MINILM, real_model
from support.tiny_models import tiny_model

from ktc.errors import (
    MissingTensorError,
    SafetensorsError,
    TokenizerError,
    UnsupportedModelError,
)
from ktc.weights.opening import open_source
from ktc.weights.safetensors_header import read_header


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_equal(model: torch.nn.Module, folder: Path) -> None:
    source = open_source(folder)
    binding = source.bind(shapes(model), source.config())
    assert not binding.errors() and not binding.unused
    for name, expected in model.state_dict().items():
        raw = source.read(binding.recipes[name])
        assert np.array_equal(raw.data.view("<f4").reshape(raw.shape), expected.numpy()), name


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma3_text", "qwen2", "mixtral", "qwen2_moe", "qwen3_moe"]
)
def test_every_parameter_comes_back(architecture: str, tmp_path: Path) -> None:
    """`save_pretrained` writes one matrix an expert, as published checkpoints do."""
    model = tiny_model(architecture)
    folder = write_safetensors_folder(model, tmp_path / "m")
    check_equal(model, folder)
    assert open_source(folder).config().architectures == [type(model).__name__]


def test_shards(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = write_safetensors_folder(model, tmp_path / "m", max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    check_equal(model, folder)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    model.tie_weights()
    folder = write_safetensors_folder(model, tmp_path / "m")
    assert "lm_head.weight" not in open_source(folder).headers()
    check_equal(model, folder)


def test_half_precision_stays_as_it_is(tmp_path: Path) -> None:
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "f16")):
        model = tiny_model("qwen3").to(dtype)
        source = open_source(write_safetensors_folder(model, tmp_path / name))
        recipe = source.bind(shapes(model), source.config()).recipes["model.embed_tokens.weight"]
        raw = source.read(recipe)
        assert raw.format == name
        assert bytes(raw.data) == model.model.embed_tokens.weight.detach().view(torch.uint8).numpy().tobytes()


def test_missing_and_unused_are_listed(tmp_path: Path) -> None:
    model = tiny_model("llama")
    source = open_source(write_safetensors_folder(model, tmp_path / "m"))
    wanted = {**shapes(model), "model.extra.weight": (3,), "model.norm.weight": (7,)}
    del wanted["model.embed_tokens.weight"]
    binding = source.bind(wanted, source.config())
    assert binding.missing == {"model.extra.weight": ("model.extra.weight", "extra.weight")}
    assert binding.unused == ("model.embed_tokens.weight",)
    assert "model.norm.weight" not in binding.recipes and len(binding.problems) == 1


def test_tokenizer_of_the_folder(tmp_path: Path) -> None:
    model = tiny_model("llama")
    tokenizer = open_source(write_gguf(model, tmp_path / "m.gguf")).tokenizer()
    assert tokenizer is not None
    source = open_source(write_safetensors_folder(model, tmp_path / "with", tokenizer))
    again = source.tokenizer()
    assert again is not None and again("the theatre").input_ids == tokenizer("the theatre").input_ids
    assert again.chat_template == tokenizer.chat_template
    assert open_source(write_safetensors_folder(model, tmp_path / "without")).tokenizer() is None
    (tmp_path / "with" / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError):
        open_source(tmp_path / "with").tokenizer()


def test_foreign_code_is_never_run(tmp_path: Path) -> None:
    folder = write_safetensors_folder(tiny_model("llama"), tmp_path / "m")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        open_source(folder).config()


def test_broken_config_is_a_typed_error(tmp_path: Path) -> None:
    folder = write_safetensors_folder(tiny_model("llama"), tmp_path / "m")
    for text in ("", "{", "[]", '{"model_type": 3}', "{}", '{"model_type": "llama", "hidden_size": "wide"}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(UnsupportedModelError):
            open_source(folder).config()


def test_fp8_without_scales_is_refused_when_bound(tmp_path: Path) -> None:
    folder = write_safetensors_folder(tiny_model("llama"), tmp_path / "m")
    save_file({"model.norm.weight": torch.ones(256).to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    source = open_source(folder)
    (problem,) = source.bind({"model.norm.weight": (256,)}, source.config()).problems
    assert isinstance(problem, MissingTensorError) and "weight_scale_inv" in problem.hint


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "no JSON": (struct.pack("<Q", 4) + b"abcd", "not valid JSON"),
    "header longer than the file": (struct.pack("<Q", 1 << 40) + b"{}", "truncated"),
    "a list": (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
    "deep nesting": (struct.pack("<Q", 100_000) + b"[" * 100_000, "not valid JSON"),
    "a name twice": (struct.pack("<Q", 17) + b'{"a":{},"a":{}}  ', "appears twice"),
}
BROKEN_ENTRIES: dict[str, tuple[Any, str]] = {
    "no object": (5, "not an object"),
    "dtype": (entry(dtype="F13"), "unknown dtype"),
    "dtype is no text": (entry(dtype=[1]), "unknown dtype"),
    "negative shape": (entry(shape=[-2]), "bad shape"),
    "shape is text": (entry(shape="2"), "bad shape"),
    "float in shape": (entry(shape=[2.0]), "bad shape"),
    "offsets beyond the file": (entry(shape=[100], offsets=[0, 400]), "outside"),
    "offsets swapped": (entry(offsets=[8, 0]), "outside"),
    "one offset": (entry(offsets=[0]), "outside"),
    "size": (entry(shape=[3]), "takes 12"),
    "size overflow": (entry(shape=[2**62, 2**62], offsets=[0, 8]), "takes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(name: str, tmp_path: Path) -> None:
    content, words = BROKEN[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorsError, match=words):
        read_header(path)


@pytest.mark.parametrize("name", BROKEN_ENTRIES)
def test_broken_entry(name: str, tmp_path: Path) -> None:
    value, words = BROKEN_ENTRIES[name]
    text = json.dumps({"t": value}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(SafetensorsError, match=words) as caught:
        read_header(path)
    assert caught.value.tensor == "t"


def test_overlapping_tensors(tmp_path: Path) -> None:
    text = json.dumps({"a": entry(), "b": entry(offsets=[4, 12])}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(SafetensorsError, match="overlap"):
        read_header(path)


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.zeros(2, 2, dtype=torch.float16)}, path)
    content = path.read_bytes()
    assert set(read_header(path)) == {"a", "b"}
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(SafetensorsError):
            read_header(path)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "../../etc/passwd"}, "not a safetensors file of the folder"),
        ({"a": "/etc/passwd.safetensors"}, "not a safetensors file of the folder"),
        ({"a": "model-9.safetensors"}, "missing"),
        ({"a": 5}, "no weight_map"),
        ([], "no weight_map"),
        ({"nothing": "model.safetensors"}, "not in their files, first 'nothing'"),
    ],
)
def test_hostile_index(weight_map: Any, words: str, tmp_path: Path) -> None:
    folder = write_safetensors_folder(tiny_model("llama"), tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(SafetensorsError, match=words):
        open_source(folder)


@pytest.mark.models
def test_minilm() -> None:
    from transformers import AutoModel

    source = open_source(real_model(MINILM))
    config = source.config()
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    binding = source.bind({name: tuple(p.shape) for name, p in model.named_parameters()}, config)
    assert not binding.errors() and binding.unused == ("embeddings.position_ids",)
    tokenizer = source.tokenizer()
    assert tokenizer is not None and tokenizer("hello").input_ids == [101, 7592, 102]

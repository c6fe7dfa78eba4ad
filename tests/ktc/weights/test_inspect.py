"""The summary of a source has its sizes right and is plain JSON."""

from __future__ import annotations

import json
from pathlib import Path

from support.gguf_files import write_gguf, write_safetensors_folder
from support.tiny_models import tiny_model

from ktc.weights.inspect import inspect, printable


def test_gguf(tmp_path: Path) -> None:
    model = tiny_model("llama")
    path = write_gguf(model, tmp_path / "m.gguf", "q8_0", formats={"attn_v": "f16"}, split=2)
    found = inspect(path)
    assert (found.kind, found.architecture, found.name) == ("gguf", "llama", "tiny llama")
    assert found.elements == sum(p.numel() for p in model.parameters())
    uses = {use.format: use for use in found.formats}
    assert set(uses) == {"q8_0", "f16", "f32"}
    assert uses["f16"].tensors == 2 and uses["f16"].nbytes == 2 * 2 * 128 * 256
    assert uses["q8_0"].bits_per_element == 8.5 and uses["q8_0"].computable
    assert [name for name, _ in found.files] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert found.metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-05
    assert found.metadata["tokenizer.ggml.tokens"].startswith("array of string, 512 items")
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["bytes"] == found.nbytes == sum(tensor["bytes"] for tensor in plain["tensors"])
    assert plain["formats"][0]["format"] == "q8_0"


def test_safetensors(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    found = inspect(write_safetensors_folder(model, tmp_path / "m"))
    assert (found.kind, found.architecture) == ("safetensors", "qwen3")
    assert found.elements == sum(p.numel() for p in model.parameters())
    assert found.metadata["hidden_size"] == 256
    json.dumps(found.to_json())


def test_control_characters_are_escaped() -> None:
    assert printable("a\x1b[31m\n\u202eé") == "a\\x1b[31m\\n\\u202eé"

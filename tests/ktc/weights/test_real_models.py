"""SmolLM2 and Gemma 3 out of their GGUF files: all parameters bound, sensible answers in eager mode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from support.gguf_files import write_safetensors_folder
from support.real_models import GEMMA3, SMOLLM2, real_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from ktc.weights.convert import dequantize
from ktc.weights.opening import open_source
from ktc.weights.source import WeightSource

pytestmark = pytest.mark.models


def eager(source: WeightSource) -> PreTrainedModel:
    """The Hugging Face model in float32 with the source's dequantised weights."""
    config = source.config()
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(p.shape) for name, p in shell.named_parameters(remove_duplicate=False)}
    binding = source.bind(shapes, config)
    assert not binding.errors() and not binding.unused
    state = {}
    for name, recipe in binding.recipes.items():
        raw = source.read(recipe)
        state[name] = torch.from_numpy(dequantize(raw.data, raw.format, raw.shape))
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    kind = getattr(transformers, config.architectures[0])
    model: PreTrainedModel = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    return model.eval()


def continued(model: PreTrainedModel, source: WeightSource, prompt: str, count: int) -> str:
    tokenizer = source.tokenizer()
    assert tokenizer is not None
    with torch.no_grad():
        ids = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=count, do_sample=False)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def test_smollm2(tmp_path: Path) -> None:
    source = open_source(real_model(SMOLLM2))
    model = eager(source)
    assert continued(model, source, "The capital of France is", 2) == "The capital of France is Paris."
    folder = open_source(write_safetensors_folder(model, tmp_path / "m", source.tokenizer()))
    assert (
        continued(eager(folder), folder, "The capital of France is", 2) == "The capital of France is Paris."
    )


def test_gemma3() -> None:
    source = open_source(real_model(GEMMA3))
    text = continued(eager(source), source, "Water boils at a temperature of", 6)
    assert text == "Water boils at a temperature of 100 degrees Celsius"

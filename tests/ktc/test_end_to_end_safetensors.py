"""SmolLM2 as a safetensors folder, written from the dequantised weights of its GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ktc.grammar.diagnostics import KtError
from support.gguf_files import write_safetensors_folder
from support.real_models import SMOLLM2
from support.references import Reference, reference

import ktc
from ktc.api import load_compiled
from ktc.verify import compare_logits, logits_of

pytestmark = pytest.mark.models

RULES = """include "std/llama.kt"
device host = cpu (memory = 3GiB)
rule everything { match ** place host }
"""
POSITIONS = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ref: Reference = reference(SMOLLM2)
    return write_safetensors_folder(ref.model, tmp_path_factory.mktemp("smol") / "model", ref.tokenizer)


@pytest.mark.parametrize(
    ("quant", "kl", "top1"),
    [(None, 1e-8, 1.0), ("bf16", 2e-4, 0.99), ("q8_0", 0.008, 0.94), ("q4_0", 0.5, 0.6)],
)
def test_formats(folder: Path, quant: str | None, kl: float, top1: float) -> None:
    """Without quant the model of the file; with it, near enough for the format."""
    ref = reference(SMOLLM2)
    rule = f"rule w {{ match @linears quant {quant} }}\n" if quant else ""
    model: Any = load_compiled(*ktc.compile(RULES + rule, model=folder))
    found = compare_logits(ref.logits[:POSITIONS], logits_of(model, ref.ids[:, :POSITIONS]))
    assert found.kl_mean < kl and found.top1 >= top1, found
    ids = ref.prompts[0]
    text = model.tokenizer.decode(ids[0])
    assert torch.equal(model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"], ids)


def test_rows_do_not_divide_into_q4_k(folder: Path) -> None:
    with pytest.raises(KtError) as caught:
        ktc.compile(RULES + "rule w { match @linears quant q4_k }\n", model=folder)
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT605" and "rows have 576 elements" in problem.message

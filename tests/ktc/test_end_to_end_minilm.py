"""all-MiniLM-L6-v2, no language model, through `ktc.rewrite`: the embeddings of eager, at any batch size and length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.prose import TEXT
from support.real_models import MINILM, real_model
from transformers import AutoModel, AutoTokenizer

import ktc

pytestmark = pytest.mark.models

RULES = "device host = cpu (memory = 1GiB)\nrule everything { match ** place host }\n"
SENTENCES = [sentence.strip() for sentence in TEXT.replace("\n", " ").split(". ")]


def embeddings(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean of the last hidden states over the tokens, of length 1, as sentence-transformers does; [batch, 384]."""
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def test_embeddings() -> None:
    """Equal to eager's to 1e-5 in every component (they have length 1), so to a cosine of 1 - 1e-9."""
    folder = real_model(MINILM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    eager = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    placed = ktc.rewrite(eager, RULES)
    targets = {str(n.target) for n in placed.placement.graphs["step"].nodes if n.op == "call_function"}  # type: ignore[union-attr]
    assert "kt_cpu.linear.default" in targets and "kt_cpu.layer_norm.default" in targets
    for batch, length in ((1, 8), (1, 128), (3, 20), (8, 64), (16, 5)):
        inputs = dict(
            tokenizer(
                SENTENCES[:batch],
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
        )
        expected, got = embeddings(eager, inputs), embeddings(placed, inputs)
        assert got.shape == (batch, 384)
        assert float((got - expected).abs().max()) < 1e-5, (batch, length)


def test_quantised_embeddings() -> None:
    """With 8-bit weights the embeddings still point where eager's do."""
    folder = real_model(MINILM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    eager = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    placed = ktc.rewrite(eager, RULES + "rule w { match encoder.** : Linear quant q8_0 }\n")
    inputs = dict(tokenizer(SENTENCES[:8], padding=True, return_tensors="pt"))
    cosine = (embeddings(eager, inputs) * embeddings(placed, inputs)).sum(-1)
    assert float(cosine.min()) > 0.999

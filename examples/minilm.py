"""Sentence embeddings from all-MiniLM-L6-v2, rewritten by rules: a module that is no language model.

`make models` unpacks the model; then `python examples/minilm.py`. It prints how alike each pair of sentences is,
by the model as it was and by the rewritten one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

import ktc

MODEL = Path(__file__).parents[1] / "models" / "all-MiniLM-L6-v2"

RULES = """
device host = cpu

rule everything { match ** place host }

# The feed-forward halves of the layers hold most of the weights: eight bits for them, the rest as it is.
rule feed_forward {
  match  encoder.layer[*].intermediate.dense or encoder.layer[*].output.dense
  quant  q8_0
  expect 12
}
"""

SENTENCES = (
    "The cat sleeps on the warm roof.",
    "A kitten naps on top of the house.",
    "Interest rates rose again in spring.",
)


def embed(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Unit vectors [sentences, 384]: the mean of the last hidden states over each sentence's own tokens."""
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def main() -> float:
    """Prints the similarities; returns the lowest cosine between a sentence's two embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    eager = AutoModel.from_pretrained(MODEL).eval()
    inputs = dict(tokenizer(list(SENTENCES), padding=True, return_tensors="pt"))
    names = {0: "sentences", 1: "tokens"}
    placed = ktc.rewrite(eager, RULES, example=inputs, dynamic={name: names for name in inputs})

    before, after = embed(eager, inputs), embed(placed, inputs)
    for i in range(len(SENTENCES)):
        for j in range(i + 1, len(SENTENCES)):
            print(f"{before[i] @ before[j]:.4f} eager, {after[i] @ after[j]:.4f} placed: ", end="")
            print(f"{SENTENCES[i]!r} and {SENTENCES[j]!r}")
    lowest = float((before * after).sum(-1).min())
    print(f"lowest cosine between eager and placed embedding of one sentence: {lowest:.6f}")
    return lowest


if __name__ == "__main__":
    main()

"""The eager references of the real models, computed once a session and shared by every test that compares with them."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path

import torch
from support.agreement import greedy
from support.prose import BEGINNINGS, QUESTIONS, TEXT
from support.real_models import real_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ktc.eager import eager_model
from ktc.verify import logits_of
from ktc.weights.opening import open_source
from ktc.weights.source import WeightSource

NEW_TOKENS = 64


class Reference:
    """An eager model on the dequantised weights of a file, with its logits over `TEXT` and its greedy answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source: WeightSource = open_source(path)
        tokenizer = self.source.tokenizer()
        if tokenizer is None:
            raise ValueError(f"{path} has no tokenizer")
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.ids: torch.Tensor = tokenizer(TEXT, return_tensors="pt")["input_ids"]

    @cached_property
    def model(self) -> PreTrainedModel:
        """The eager model."""
        return eager_model(self.source)

    @cached_property
    def logits(self) -> torch.Tensor:
        """Its logits over `ids`, float32[tokens, vocabulary]."""
        return logits_of(self.model, self.ids)

    @cached_property
    def prompts(self) -> list[torch.Tensor]:
        """Five prompts, int64[1, n]: questions in the chat template, or beginnings for a base model."""
        if not self.tokenizer.chat_template:
            return [self.tokenizer(text, return_tensors="pt")["input_ids"] for text in BEGINNINGS]
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            for question in QUESTIONS
        ]
        return [
            self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts
        ]

    @cached_property
    def answers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Its greedy answers to the prompts, `NEW_TOKENS` tokens each, and their logits; see `greedy`."""
        return greedy(self.model, self.prompts, NEW_TOKENS)


@cache
def reference(name: str) -> Reference:
    """The reference of one of the real models; skips the test when its file is not there."""
    return Reference(real_model(name))

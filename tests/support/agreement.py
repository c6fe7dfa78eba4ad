"""How near a compiled model's logits and greedy answers are to the eager model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

ROWS = 64
"""Positions compared at a time: a vocabulary of 262144 in float64 takes 128 MiB for these."""


@dataclass(frozen=True)
class Agreement:
    """Over `positions`: the mean and the largest KL(expected || got) in nats, and how often both have one favourite."""

    positions: int
    kl_mean: float
    kl_max: float
    top1: float


@dataclass(frozen=True)
class Difference:
    """Where an answer leaves the expected one: which prompt, at which new token, and by how much the expected model
    preferred its own token to the one taken (difference of its logits there).
    """

    prompt: int
    token: int
    gap: float


@torch.no_grad()
def compare_logits(expected: torch.Tensor, got: torch.Tensor) -> Agreement:
    """Compares logits [positions, vocabulary]."""
    divergences = []
    same = 0
    for start in range(0, len(expected), ROWS):
        left, right = expected[start : start + ROWS].double(), got[start : start + ROWS].double()
        p, q = left.log_softmax(-1), right.log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1))
        same += int((left.argmax(-1) == right.argmax(-1)).sum())
    kl = torch.cat(divergences)
    return Agreement(len(kl), float(kl.mean()), float(kl.max()), same / len(kl))


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits [tokens, vocabulary] of one sequence, int64[1, tokens]."""
    return model(ids, use_cache=False).logits[0].float()


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: torch.Tensor, tokens: int) -> list[int]:
    """Exactly `tokens` new tokens, stopping at none, after int64[1, n]."""
    out = model.generate(
        prompt,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [int(i) for i in out[0, prompt.shape[1] :]]


@torch.no_grad()
def differences(
    eager: PreTrainedModel,
    prompts: Sequence[torch.Tensor],
    expected: Sequence[list[int]],
    got: Sequence[list[int]],
) -> list[Difference]:
    """The first difference of each answer that is not the expected one."""
    found = []
    for index, (prompt, left, right) in enumerate(zip(prompts, expected, got, strict=True)):
        at = next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), None)
        if at is not None:
            ids = torch.cat([prompt, torch.tensor([left[:at]], dtype=torch.long)], 1)
            logits = eager(ids, logits_to_keep=1, use_cache=False).logits[0, -1]
            found.append(Difference(index, at, float(logits[left[at]] - logits[right[at]])))
    return found

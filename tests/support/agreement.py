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
def greedy(
    model: PreTrainedModel, prompts: Sequence[torch.Tensor], tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exactly `tokens` new tokens after each prompt int64[1, n], stopping at none.

    Returns: ids int64[prompts, tokens], and the logits they were chosen from, [prompts, tokens, vocabulary].
    """
    width = max(prompt.shape[1] for prompt in prompts)
    ids = torch.cat([torch.nn.functional.pad(p, (width - p.shape[1], 0)) for p in prompts])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(p), (width - p.shape[1], 0)) for p in prompts])
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None,
        pad_token_id=0, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return out.sequences[:, width:], torch.stack(out.logits, 1)


def differences(expected: torch.Tensor, logits: torch.Tensor, got: torch.Tensor) -> list[Difference]:
    """The first difference of each answer int64[prompts, tokens] that is not the expected one; `logits` are those that
    the expected answers were chosen from.
    """
    found = []
    for prompt, (left, right) in enumerate(zip(expected.tolist(), got.tolist(), strict=True)):
        at = next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), None)
        if at is not None:
            row = logits[prompt, at]
            found.append(Difference(prompt, at, float(row[left[at]] - row[right[at]])))
    return found

"""Greedy answers, and where those of a compiled model leave the eager model's; logits: `ktc.verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Difference:
    """Where an answer leaves the expected one: which prompt, at which new token, and by how much the expected model
    preferred its own token to the one taken (difference of its logits there).
    """

    prompt: int
    token: int
    gap: float


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

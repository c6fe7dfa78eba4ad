"""How far a compiled model's logits are from a reference's: the eager model of transformers, or another program.

A text is read as a prompt would be, most of it in one prefill and the end token by token, so that the kernels of both
are compared. Both models see the same ids, so an error at one position does not change the text that follows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ktc.errors import KtcError

ROWS = 64
"""Positions compared at a time: a vocabulary of 262144 in float64 takes 128 MiB for these."""
TOKENS, STEPS = 256, 16
TEXT = """\
A sluice is a gate that slides. When the miller of Aldwick wanted his wheel to turn, he lifted an oak board by the \
width of a hand, and the river did the rest; when the corn was ground he let it fall again. His notebook survives. \
On 14 May 1803 he measured the stream with a cork and a pocket watch: 40 feet in 16 seconds, so 2.5 feet a second, \
through a channel 3 feet wide and 1 foot deep. That makes 7.5 cubic feet a second, and at 62.4 pounds a cubic foot \
some 468 pounds of water. "It falls nine feet," he wrote, "and costs me nothing but the greasing of one axle."

His grandson, who kept the accounts on a computer, would have put it like this:

def power(flow, drop, efficiency=0.6):
    \"\"\"Watts from cubic metres a second that fall `drop` metres.\"\"\"
    return 1000 * 9.81 * flow * drop * efficiency

print(round(power(0.212, 2.74)))  # 3419

Three things follow. First, the flow matters as much as the drop. Second, whoever builds a dam upstream takes both. \
Third, as the old man underlined twice, a wheel that stands still in the frost earns less than a goose.
"""


@dataclass(frozen=True)
class Agreement:
    """How near logits are to the expected ones, over a number of positions.

    Attributes:
        positions: how many were compared.
        kl_mean, kl_max: KL(expected || got) in nats: its mean, and the largest of one position.
        worst: the position of `kl_max`.
        top1: the share of positions at which both prefer the same token.
        max_error: the largest absolute difference of two logits.
        relative_error: norm of the difference over the norm of the expected logits.
    """

    positions: int
    kl_mean: float
    kl_max: float
    worst: int
    top1: float
    max_error: float
    relative_error: float


@dataclass(frozen=True)
class Verification:
    """A text through two models.

    Attributes:
        overall, prefill, steps: agreement over all positions, those of the prefill, and those computed one by one.
        perplexity, expected_perplexity: exp of the mean negative log probability of the next token, of the model and
            of its reference.
    """

    overall: Agreement
    prefill: Agreement
    steps: Agreement | None
    perplexity: float
    expected_perplexity: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def verify(expected: torch.Tensor, got: torch.Tensor, ids: torch.Tensor, steps: int) -> Verification:
    """Compares logits of two models over the same ids.

    Args:
        expected, got: float32[tokens, vocabulary]; ids: int64[1, tokens]; steps: how many of the last tokens were
            computed one by one.

    Raises:
        KtcError: vocabularies of different sizes, or logits that are not finite.
    """
    if expected.shape != got.shape:
        raise KtcError(
            f"the reference has a vocabulary of {expected.shape[-1]} tokens and the model one of {got.shape[-1]}",
            hint="compare programs for the same model",
        )
    for logits, whose in ((expected, "the reference"), (got, "the model")):
        bad = ~torch.isfinite(logits).all(-1)
        if bad.any():
            raise KtcError(
                f"{whose} has logits that are not finite, first at position {int(bad.int().argmax())}"
            )
    split = len(expected) - steps
    return Verification(
        compare_logits(expected, got),
        compare_logits(expected[:split], got[:split]),
        compare_logits(expected[split:], got[split:]) if steps else None,
        perplexity(got, ids),
        perplexity(expected, ids),
    )


@torch.no_grad()
def compare_logits(expected: torch.Tensor, got: torch.Tensor) -> Agreement:
    """Compares logits [positions, vocabulary]."""
    divergences = []
    same, largest, apart, size = 0, 0.0, 0.0, 0.0
    for start in range(0, len(expected), ROWS):
        left, right = expected[start : start + ROWS].double(), got[start : start + ROWS].double()
        p, q = left.log_softmax(-1), right.log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1).clamp_min(0))
        same += int((left.argmax(-1) == right.argmax(-1)).sum())
        largest = max(largest, float((left - right).abs().max()))
        apart += float((left - right).square().sum())
        size += float(left.square().sum())
    kl = torch.cat(divergences)
    relative = (apart / size) ** 0.5 if size else 0.0
    return Agreement(
        len(kl), float(kl.mean()), float(kl.max()), int(kl.argmax()), same / len(kl), largest, relative
    )


@torch.no_grad()
def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """exp of the mean negative log probability of each next token; logits [tokens, vocabulary], ids int64[1, n]."""
    found = [
        torch.nn.functional.cross_entropy(
            logits[start : start + ROWS][: ids.shape[1] - 1 - start].double(),
            ids[0, start + 1 : start + 1 + ROWS],
            reduction="sum",
        )
        for start in range(0, ids.shape[1] - 1, ROWS)
    ]
    return float((torch.stack(found).sum() / (ids.shape[1] - 1)).exp())


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: torch.Tensor, steps: int = 0) -> torch.Tensor:
    """Logits float32[tokens, vocabulary] of one sequence int64[1, tokens], its last `steps` tokens one at a time."""
    split = ids.shape[1] - steps
    found = model(ids[:, :split], use_cache=steps > 0)
    logits, cache = [found.logits[0].float()], found.past_key_values
    for position in range(split, ids.shape[1]):
        found = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        logits.append(found.logits[0].float())
        cache = found.past_key_values
    return torch.cat(logits)


def encode(tokenizer: PreTrainedTokenizerBase | None, text: str, tokens: int = TOKENS) -> torch.Tensor:
    """The first `tokens` ids of a text, int64[1, at most tokens].

    Raises:
        KtcError: no tokenizer, or a text of fewer than two tokens.
    """
    if tokenizer is None:
        raise KtcError("the model has no tokenizer to read a text with")
    ids: torch.Tensor = tokenizer(text, return_tensors="pt")["input_ids"][:, :tokens]
    if ids.shape[1] < 2:
        raise KtcError(
            f"the text has {ids.shape[1]} tokens; two are needed to compare", hint="give a longer text"
        )
    return ids

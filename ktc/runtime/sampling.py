"""Picks the next token from logits as a GenerationConfig says, with transformers' own logits processors."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ktc.runtime.errors import InvalidInputError, UnsupportedCallError

_DEFAULT_TOP_K = 50  # what transformers' generate() takes when nobody says

# Settings that change which tokens come out, and that only `model.generate` implements.
_ELSEWHERE = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "sequence_bias",
    "suppress_tokens",
    "top_h",
    "typical_p",
    "watermarking_config",
)
_NEUTRAL: tuple[Any, ...] = (None, 0, 0.0, 1.0, [])


def with_overrides(settings: GenerationConfig, overrides: dict[str, Any]) -> GenerationConfig:
    """A copy of `settings` with some of them replaced; InvalidInputError for a name that is none of them."""
    changed = copy.deepcopy(settings)
    unknown = sorted(name for name in overrides if not hasattr(changed, name))
    if unknown:
        raise InvalidInputError(f"no such generation setting: {', '.join(unknown)}")
    for name, value in overrides.items():
        setattr(changed, name, value)
    return changed


class Sampler:
    """Greedy or seeded sampling; the same tokens as `generate` for the same settings, seed and logits.

    Args:
        settings: do_sample, temperature, top_k, top_p, min_p and repetition_penalty are read; any other
            setting that would change the tokens raises UnsupportedCallError.
        seed: of a random generator of its own; None: torch's global one.
    """

    def __init__(self, settings: GenerationConfig, seed: int | None = None) -> None:
        _refuse(settings)
        self.sample = bool(settings.do_sample)
        self._processors = _processors(settings)
        self._seed = seed
        self._generator: torch.Generator | None = None

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> int:
        """The next token after `ids` int64 [1, n], from logits [1, V]."""
        scores = logits.float()
        if self._processors:
            scores = self._processors(ids.to(logits.device), scores)  # type: ignore[arg-type]
        if not self.sample:
            return int(scores.argmax(-1))
        if self._seed is not None and self._generator is None:
            self._generator = torch.Generator(logits.device).manual_seed(self._seed)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))


def _refuse(settings: GenerationConfig) -> None:
    foreign = [name for name in _ELSEWHERE if getattr(settings, name, None) not in _NEUTRAL]
    if (settings.num_beams or 1) > 1:
        foreign.append("num_beams")
    if foreign:
        raise UnsupportedCallError(
            f"streaming text does not implement {', '.join(foreign)}",
            hint="`model.generate(…)` does; or leave these settings out",
        )


def _processors(settings: GenerationConfig) -> LogitsProcessorList:
    """The processors in the order in which transformers applies them."""
    chain = LogitsProcessorList()
    if settings.repetition_penalty not in (None, 1.0):
        chain.append(RepetitionPenaltyLogitsProcessor(penalty=float(settings.repetition_penalty)))
    if not settings.do_sample:
        return chain
    top_k = _DEFAULT_TOP_K if settings.top_k is None else int(settings.top_k)
    if settings.temperature not in (None, 1.0):
        if settings.temperature <= 0:
            raise InvalidInputError(
                f"temperature must be positive, not {settings.temperature}; do_sample=False is greedy"
            )
        chain.append(TemperatureLogitsWarper(float(settings.temperature)))
    if top_k:
        chain.append(TopKLogitsWarper(top_k=top_k))
    if settings.top_p is not None and settings.top_p < 1.0:
        chain.append(TopPLogitsWarper(top_p=float(settings.top_p)))
    if settings.min_p is not None:
        chain.append(MinPLogitsWarper(min_p=float(settings.min_p)))
    return chain

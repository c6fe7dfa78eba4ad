"""Streams generated text token by token: the loop behind `ktc run` and `ktc chat`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from ktc.runtime.cache import KtcCache
from ktc.runtime.detokenize import Detokenizer
from ktc.runtime.errors import InvalidInputError
from ktc.runtime.generation import stop_ids
from ktc.runtime.model import PlacedModel
from ktc.runtime.sampling import Sampler, with_overrides
from ktc.runtime.template import end_of_turn_ids, render_chat

StopReason = Literal["stop token", "max_new_tokens", "context full", "interrupted"]


@dataclass
class TextStats:
    """Counts and times of one generation; the time the caller takes between two pieces is not in it.

    Attributes:
        prompt_tokens: tokens before the first new one, those reused from the cache included.
        reused_tokens: prompt tokens whose keys and values were in the cache already.
        new_tokens: tokens generated, the one that stopped included.
        prefill_seconds: until the first new token.
        decode_seconds: for all new tokens but the first.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens computed a second."""
        return _rate(self.prompt_tokens - self.reused_tokens, self.prefill_seconds)

    @property
    def decode_rate(self) -> float:
        """New tokens a second, without the first one."""
        return _rate(self.new_tokens - 1, self.decode_seconds)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 and count > 0 else 0.0


class TextStream:
    """Iterates once over pieces of generated text, each whole characters.

    Stopping early (`close()`, or leaving the loop and dropping the stream) ends the generation.

    Attributes:
        text: everything out so far.
        tokens: ids generated so far, without the stop token.
        stats: counts and times so far.
        stopped: why it ended; None while it runs.
        cache: holds the first `cache.get_seq_length()` tokens of prompt and answer.
    """

    def __init__(
        self,
        model: PlacedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: list[int],
        *,
        sampler: Sampler,
        stops: frozenset[int],
        max_new_tokens: int | None = None,
        cache: KtcCache | None = None,
    ) -> None:
        if not prompt:
            raise InvalidInputError("the prompt has no tokens")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise InvalidInputError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        self.text = ""
        self.tokens: list[int] = []
        self.stopped: StopReason | None = None
        self.cache = cache if cache is not None else model.new_cache()
        self.stats = TextStats(len(prompt), self.cache.get_seq_length())
        if self.stats.reused_tokens >= len(prompt):
            raise InvalidInputError(
                "the cache holds the whole prompt; crop its last token to compute it again"
            )
        self._model, self._prompt, self._sampler, self._stops = model, prompt, sampler, stops
        self._detokenizer = Detokenizer(tokenizer)
        self._max_new_tokens = max_new_tokens
        self._pieces = self._generate()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the generation here."""
        self._pieces.close()
        if self.stopped is None:
            self.stopped = "interrupted"

    def _generate(self) -> Generator[str]:
        ids = torch.tensor([self._prompt])
        fresh = ids[:, self.stats.reused_tokens :]
        try:
            while self.stopped is None:
                token = self._next_token(fresh, ids)
                if token in self._stops:
                    self.stopped = "stop token"
                    break
                self.tokens.append(token)
                piece = self._detokenizer.push(token)
                self.text += piece
                if len(self.tokens) == self._max_new_tokens:
                    self.stopped = "max_new_tokens"
                elif not self._has_room():
                    self.stopped = "context full"
                if piece:
                    yield piece
                fresh = torch.tensor([[token]])
                ids = torch.cat([ids, fresh], 1)
            rest = self._detokenizer.flush()
            if rest:
                self.text += rest
                yield rest
        finally:
            if self.stopped is None:
                self.stopped = "interrupted"

    def _next_token(self, fresh: torch.Tensor, ids: torch.Tensor) -> int:
        start = perf_counter()
        output: Any = self._model.forward(fresh, past_key_values=self.cache, logits_to_keep=1)
        token = self._sampler(ids, output.logits[:, -1])
        seconds = perf_counter() - start
        if self.stats.new_tokens:
            self.stats.decode_seconds += seconds
        else:
            self.stats.prefill_seconds = seconds
        self.stats.new_tokens += 1
        return token

    def _has_room(self) -> bool:
        """Whether the token just generated can be fed back."""
        length = self.cache.get_seq_length()
        limit = getattr(self._model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if limit is not None and length >= int(limit):
            return False
        sequence = self.cache.sequences[0]
        needs = sequence.missing_blocks(1) + (sequence.shared_tail() is not None)
        return needs <= sequence.allocator.free_blocks


def stream_text(
    model: PlacedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    chat: bool | None = None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    **settings: Any,
) -> TextStream:
    """Text that continues or answers `prompt`.

    Args:
        chat: True: the prompt is a user's message, put into the chat template; False: it is continued as it
            is. None: True if the tokenizer has a template.
        max_new_tokens: None: until a stop token, or until the KV cache or the model's context is full.
        seed: for sampling; None: torch's global generator.
        settings: of generation (do_sample, temperature, top_k, …); the others are the model's own.

    Raises NoChatTemplateError, InvalidInputError, UnsupportedCallError; while iterating also KvCacheFull.
    """
    if chat is None:
        chat = bool(getattr(tokenizer, "chat_template", None))
    config = with_overrides(model.generation_config, settings)
    stops = frozenset(stop_ids(config.eos_token_id))
    if chat:
        ids = render_chat(tokenizer, [{"role": "user", "content": prompt}])
        stops |= end_of_turn_ids(tokenizer)
    else:
        ids = [int(i) for i in tokenizer(prompt)["input_ids"]]
        if not ids and tokenizer.bos_token_id is not None:
            ids = [int(tokenizer.bos_token_id)]
    return TextStream(
        model, tokenizer, ids, sampler=Sampler(config, seed), stops=stops, max_new_tokens=max_new_tokens
    )

"""A conversation with a placed model that keeps its KV cache between turns."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from ktc.runtime.cache import KtcCache
from ktc.runtime.generation import stop_ids
from ktc.runtime.model import PlacedModel
from ktc.runtime.sampling import Sampler, with_overrides
from ktc.runtime.template import end_of_turn_ids, render_chat
from ktc.runtime.text import TextStats, TextStream, stream_text

__all__ = ["ChatSession", "TextStats", "TextStream", "stream_text"]


class ChatSession:
    """A conversation: messages, the tokens in the KV cache, and how to sample.

    Each turn renders the whole conversation with the tokenizer's template and computes only what differs from
    the tokens in the cache; the cache is cut where a template changed the past (as those do that drop
    reasoning).

    Args:
        system: the system message, if any.
        max_new_tokens: of each answer; None: until a stop token, or until the KV cache or the context is
            full.
        seed: for sampling; None: torch's global generator.
        variables: of the chat template, for instance {"enable_thinking": False}.
        settings: of generation (do_sample, temperature, top_k, …); the others are the model's own.

    Raises NoChatTemplateError for a base model, InvalidInputError for unknown settings, UnsupportedCallError
    for settings that only `model.generate` implements.

    Attributes:
        messages: the conversation so far, with the answers; [{"role": …, "content": …}].
    """

    def __init__(
        self,
        model: PlacedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        variables: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        config = with_overrides(model.generation_config, settings)
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self.max_new_tokens = max_new_tokens
        self.messages: list[dict[str, str]] = []
        self._variables = dict(variables or {})
        self._sampler = Sampler(config, seed)
        self._stops = frozenset(stop_ids(config.eos_token_id)) | end_of_turn_ids(tokenizer)
        self._cache: KtcCache = model.new_cache()
        self._cached: list[int] = []
        self._answer: Answer | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets the conversation, but not the system message, and gives the KV cache back."""
        self._interrupt()
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        self._cache.reset()
        self._cached = []

    @property
    def cached_tokens(self) -> int:
        """Tokens of this conversation in the KV cache."""
        return len(self._cached)

    def send(self, text: str) -> Answer:
        """The answer to `text`; iterate over it to generate.

        The conversation grows when the iteration ends: by both messages, also if it is interrupted (with the
        answer as far as it came), by none if it raises (KvCacheFull: `reset`, or a larger cache).

        Raises ChatTemplateError when the template refuses the conversation.
        """
        self._interrupt()
        question = {"role": "user", "content": text}
        ids = render_chat(self.tokenizer, [*self.messages, question], **self._variables)
        # One token at least must be computed: its logits are the answer's beginning.
        self._keep(_common_prefix(self._cached, ids[:-1]))
        stream = TextStream(
            self.model,
            self.tokenizer,
            ids,
            sampler=self._sampler,
            stops=self._stops,
            max_new_tokens=self.max_new_tokens,
            cache=self._cache,
        )
        self._answer = Answer(self, question, ids, stream)
        return self._answer

    def _interrupt(self) -> None:
        """Ends the answer before, in case nobody read it to its end: it writes into the same cache."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _keep(self, length: int) -> None:
        self._cache.crop(length - len(self._cached))
        self._cached = self._cached[:length]
        if not length:
            self._cache.reset()

    def _finish(self, question: dict[str, str], ids: list[int], stream: TextStream, complete: bool) -> None:
        self._cached = (ids + stream.tokens)[: self._cache.get_seq_length()]
        if complete:
            self.messages += [question, {"role": "assistant", "content": stream.text}]


class Answer:
    """Iterates once over the pieces of an answer; see `TextStream` for `text`, `stats` and `stopped`."""

    def __init__(
        self, session: ChatSession, question: dict[str, str], ids: list[int], stream: TextStream
    ) -> None:
        self._stream = stream
        self._pieces = self._run(session, question, ids)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._stream.text

    @property
    def stats(self) -> TextStats:
        """Counts and times so far."""
        return self._stream.stats

    @property
    def stopped(self) -> str | None:
        """Why it ended; None while it runs."""
        return self._stream.stopped

    def close(self) -> None:
        """Ends the answer here; what came so far stays in the conversation."""
        self._pieces.close()
        self._stream.close()

    def _run(self, session: ChatSession, question: dict[str, str], ids: list[int]) -> Generator[str]:
        complete = False
        try:
            yield from self._stream
            complete = True
        except GeneratorExit:
            complete = True
            raise
        finally:
            session._finish(question, ids, self._stream, complete)


def _common_prefix(left: list[int], right: list[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))

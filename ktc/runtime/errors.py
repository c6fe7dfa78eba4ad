"""The typed errors of running a model: each says what was asked, why it cannot be, and what to do instead."""

from __future__ import annotations

from ktc.errors import KtcError


class KvCacheFull(KtcError):
    """The KV cache has no room for the tokens asked for.

    Attributes:
        capacity: tokens the whole cache can hold.
        needed: tokens for which room was asked beyond what is free (whole blocks).
        free: tokens for which there is room.
    """

    def __init__(
        self, *, capacity: int, needed: int, free: int, suggested: int, what: str = "this step"
    ) -> None:
        self.capacity, self.needed, self.free = capacity, needed, free
        super().__init__(
            f"the KV cache is full: it holds {capacity} tokens, {free} are free, and {what} needs {needed}",
            hint=f"raise `cache paged(tokens = {suggested})` in the rules, or free caches that are no longer "
            "needed (`del past_key_values`)",
        )


class UnsupportedCallError(KtcError):
    """A method, argument or generation mode that a placed model lacks; the message names what to use."""


class InvalidInputError(KtcError):
    """Token ids, positions or a logits selection of the wrong type, shape or range."""


class AttentionMaskError(KtcError):
    """An attention mask that is not left or right padding, or that contradicts what the cache holds."""


class CacheMismatchError(KtcError):
    """`past_key_values` does not belong to this model, or not to this batch."""


class ChatTemplateError(KtcError):
    """The chat template cannot render this conversation."""


class NoChatTemplateError(ChatTemplateError):
    """The tokenizer has no chat template, so there is no way to phrase a conversation for this model."""

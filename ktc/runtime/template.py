"""Chat templates: a conversation as token ids, and which tokens end a turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ktc.runtime.errors import ChatTemplateError, NoChatTemplateError

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""

_PROBE = "ktc probes where a turn ends"


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **variables: Any
) -> list[int]:
    """Token ids of a conversation that the assistant continues.

    Args:
        variables: of the template, for instance `enable_thinking=False`.

    Raises NoChatTemplateError, or ChatTemplateError when the template refuses the messages.
    """
    text = _render(tokenizer, messages, generation=True, variables=variables)
    # The template writes the special tokens itself.
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids with which this template ends an assistant's turn; none if it ends turns with plain text.

    Found by rendering a turn: the first token after its content, if it is a special one.
    """
    turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
    _, found, tail = _render(tokenizer, turn, generation=False, variables={}).rpartition(_PROBE)
    ids = tokenizer(tail.lstrip(), add_special_tokens=False)["input_ids"] if found and tail.strip() else []
    added = tokenizer.added_tokens_decoder
    return frozenset(int(i) for i in ids[:1] if i in added or i in tokenizer.all_special_ids)


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    generation: bool,
    variables: dict[str, Any],
) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise NoChatTemplateError(
            "this model has no chat template: it continues text, it does not answer messages",
            hint='use `ktc run MODEL "text to continue"`, or a variant of the model tuned for instructions',
        )
    try:
        text: Any = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=generation, **variables
        )
    except TemplateError as error:
        roles = ", ".join(m["role"] for m in messages)
        raise ChatTemplateError(
            f"the chat template refuses this conversation ({roles}): {error}",
            hint="some models take no system message, and most want user and assistant to alternate",
        ) from error
    return str(text)

"""Generation of placed models: default settings, the bound of the KV pool, and which modes exist."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.configuration_utils import GenerationMode

from ktc.runtime.errors import InvalidInputError, KvCacheFull, UnsupportedCallError
from ktc.runtime.kv import KvPool

_MODES = frozenset(
    {
        GenerationMode.GREEDY_SEARCH,
        GenerationMode.SAMPLE,
        GenerationMode.BEAM_SEARCH,
        GenerationMode.BEAM_SAMPLE,
        GenerationMode.ASSISTED_GENERATION,
    }
)


def generation_defaults(
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    folder: str | Path | None = None,
) -> GenerationConfig:
    """What `generate` should do by default with a model of this source.

    Reads `generation_config.json` of `folder` if there is one, else takes the token ids of `config`; adds the
    tokenizer's end-of-sequence id to the list of ids that stop, and fills in its padding id.
    """
    if folder is not None and (Path(folder) / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    else:
        settings = GenerationConfig.from_model_config(config)
    if tokenizer is not None:
        ids = stop_ids(settings.eos_token_id)
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
            ids.append(int(tokenizer.eos_token_id))
        settings.eos_token_id = ids or None
        if settings.pad_token_id is None:
            settings.pad_token_id = tokenizer.pad_token_id
        if settings.bos_token_id is None:
            settings.bos_token_id = tokenizer.bos_token_id
    if settings.pad_token_id is None and settings.eos_token_id is not None:
        settings.pad_token_id = stop_ids(settings.eos_token_id)[0]
    return settings


def stop_ids(eos: int | list[int] | torch.Tensor | None) -> list[int]:
    """The ids that end a text, as a list, whichever way a config writes them."""
    if eos is None:
        return []
    if isinstance(eos, torch.Tensor):
        eos = eos.tolist()
    return [int(i) for i in eos] if isinstance(eos, list) else [int(eos)]


def bound_length(settings: GenerationConfig, capacity: int) -> GenerationConfig:
    """A copy whose maximum length, if any, fits the KV pool (the last token needs no room)."""
    bounded = copy.deepcopy(settings)
    if bounded.max_length is not None and bounded.max_length > capacity + 1:
        bounded.max_length = capacity + 1
    return bounded


def check_generation(
    model: PreTrainedModel,
    pool: KvPool,
    inputs: Any,
    generation_config: GenerationConfig | None,
    arguments: dict[str, Any],
) -> None:
    """Refuses what a placed model cannot generate, before anything runs.

    Raises UnsupportedCallError for modes without an implementation and for other kinds of cache, KvCacheFull
    when the caller asks for more tokens than the pool holds.
    """
    settings = copy.deepcopy(generation_config if generation_config is not None else model.generation_config)
    settings.update(  # type: ignore[no-untyped-call]
        **{k: v for k, v in arguments.items() if hasattr(settings, k)}
    )
    if arguments.get("inputs_embeds") is not None:
        raise UnsupportedCallError("a placed model generates from input_ids, not inputs_embeds")
    if arguments.get("custom_generate") is not None:
        raise UnsupportedCallError(
            "custom_generate runs foreign code on the model; call it yourself with this model"
        )
    mode = settings.get_generation_mode(arguments.get("assistant_model"))
    if mode not in _MODES:
        raise UnsupportedCallError(
            f"a placed model cannot generate by {mode.value.replace('_', ' ')}",
            hint="use greedy search, sampling, beam search or an assistant model",
        )
    if settings.cache_implementation not in (None, "dynamic", "hybrid"):
        raise UnsupportedCallError(
            f"cache_implementation={settings.cache_implementation!r}: a placed model has its own KV cache",
            hint="set its size and dtype with `cache paged(tokens = …, dtype = …)` in the rules",
        )
    _check_length(pool, inputs, generation_config, arguments)


def _check_length(
    pool: KvPool, inputs: Any, generation_config: GenerationConfig | None, arguments: dict[str, Any]
) -> None:
    """Raises KvCacheFull when the length the caller asked for can never fit, even for one sequence alone."""
    ids = inputs if inputs is not None else arguments.get("input_ids")
    if ids is None:
        return
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2:
        raise InvalidInputError("generate takes input_ids as an int64 tensor [batch, tokens]")
    mask = arguments.get("attention_mask")
    prompt = int(ids.shape[1])
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape == ids.shape:
        prompt = int((mask != 0).sum(1).max())
    padding = int(ids.shape[1]) - prompt
    given = {name: arguments.get(name) for name in ("max_new_tokens", "max_length")}
    if generation_config is not None:
        given = {k: v if v is not None else getattr(generation_config, k, None) for k, v in given.items()}
    if given["max_new_tokens"] is not None:
        longest = prompt + int(given["max_new_tokens"])
    elif given["max_length"] is not None:
        longest = int(given["max_length"]) - padding
    else:
        longest = prompt + 1
    # The last token generated is never fed back, so it needs no room.
    if longest - 1 > pool.capacity:
        raise KvCacheFull(
            capacity=pool.capacity,
            needed=longest - 1,
            free=pool.allocator.free_blocks * pool.block_size,
            suggested=-(-longest // pool.block_size) * pool.block_size,
            what=f"a prompt of {prompt} tokens and {longest - prompt} new ones",
        )

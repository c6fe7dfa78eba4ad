"""`placed_model`: a compiled graph as a `PreTrainedModel`, so that `generate()` and friends work on it."""

from __future__ import annotations

import functools
from typing import Any, NoReturn, cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ktc.runtime.cache import KtcCache
from ktc.runtime.engine import Engine
from ktc.runtime.errors import CacheMismatchError, UnsupportedCallError
from ktc.runtime.generation import bound_length, check_generation
from ktc.runtime.refusals import refused_methods
from ktc.runtime.runner import Progress, Runner


def placed_model(
    skeleton: PreTrainedModel,
    engine: Engine,
    *,
    generation_config: GenerationConfig | None = None,
    prefill_chunk: int = 512,
    name: str = "",
) -> PreTrainedModel:
    """Turns `skeleton` into a model that runs on `engine`, and returns it.

    The result is of a subclass of the skeleton's class (isinstance holds; its own modules stay on the meta
    device and are never called), with `forward` and `generate` of a causal language model. Beside
    transformers' own attributes it has `engine`, `prefill_chunk`, `on_prefill`, `new_cache()`.

    Args:
        skeleton: model on the meta device, as `meta_model` makes it. It is changed, not copied.
        engine: runs the compiled graph; one engine makes one placed model.
        generation_config: what `generate` does by default; None keeps the skeleton's. Its maximum length is
            bounded by the KV pool.
        prefill_chunk: most tokens in one step of a prompt.
        name: what `repr` calls the model, for instance the artifact.
    """
    if isinstance(skeleton, PlacedModel):
        raise UnsupportedCallError(
            "this model is placed already; make a new skeleton with `meta_model(config)`"
        )
    skeleton.eval()  # type: ignore[no-untyped-call]
    skeleton.__class__ = _placed_class(cast(Any, type(skeleton)))
    object.__setattr__(skeleton, "_runner", Runner(engine, prefill_chunk))
    object.__setattr__(skeleton, "_name", name)
    defaults = generation_config if generation_config is not None else skeleton.generation_config
    if defaults is not None:
        skeleton.generation_config = bound_length(defaults, engine.pool.capacity)
    return skeleton


@functools.cache
def _placed_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    return type(f"Ktc{base.__name__}", (PlacedModel, base), {"__module__": base.__module__})


class PlacedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Mixin that replaces how a transformers model computes, moves and saves; made by `placed_model`."""

    _runner: Runner
    _name: str

    @property
    def engine(self) -> Engine:
        """What runs the compiled graph."""
        return self._runner.engine

    @property
    def device(self) -> torch.device:
        """Where token ids and logits live."""
        return self._runner.engine.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self._runner.engine.dtype

    @property
    def prefill_chunk(self) -> int:
        """Most tokens in one step of a prompt."""
        return self._runner.prefill_chunk

    @property
    def on_prefill(self) -> Progress | None:
        """Called with (tokens done, tokens in all) after each chunk of a prompt that takes several steps."""
        return self._runner.on_prefill

    @on_prefill.setter
    def on_prefill(self, progress: Progress | None) -> None:
        self._runner.on_prefill = progress

    def new_cache(self) -> KtcCache:
        """An empty `past_key_values` in this model's KV pool."""
        return KtcCache(self._runner.engine.pool)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KtcCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of a batch; appends it to `past_key_values` (a new cache when None).

        Args:
            input_ids: int64 [B, S].
            attention_mask: [B, cached columns + S] of 0 and 1; padding left or right. None: no padding.
            position_ids: int64 [B, S] or [1, S]; None: the token's index in its row, not counting padding.
            past_key_values: a cache of this model. If forward raises, it is as it was before.
            use_cache: False: no cache is returned; without `past_key_values` the tokens are forgotten.
            logits_to_keep: the last n columns (0: all) or int64 [n] of column indices.

        Returns: logits float [B, n, V] on `device`, zeros where a column is padding.

        Raises InvalidInputError, AttentionMaskError, CacheMismatchError, KvCacheFull, UnsupportedCallError.
        """
        _refuse_arguments(inputs_embeds, labels, output_attentions, output_hidden_states, kwargs)
        if past_key_values is None or (use_cache is False and not isinstance(past_key_values, KtcCache)):
            past_key_values = self.new_cache()
        elif not isinstance(past_key_values, KtcCache):
            raise CacheMismatchError(
                f"past_key_values is a {type(past_key_values).__name__}, but a placed model keeps its KV "
                "cache in its own pool",
                hint="pass None, or `model.new_cache()`",
            )
        logits = self._runner.forward(
            cast(torch.Tensor, input_ids), attention_mask, position_ids, past_key_values, logits_to_keep
        )
        cache = None if use_cache is False else past_key_values
        if return_dict is False:
            return (logits,) if cache is None else (logits, cache)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def generate(
        self, inputs: Any = None, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers: greedy, sampling, beams, streamers, assisted, left-padded batches, resumed
        caches.

        Raises UnsupportedCallError for other modes and for other kinds of cache, KvCacheFull (before it
        starts) when one sequence of the maximum length could never fit.
        """
        check_generation(self, self._runner.engine.pool, inputs, generation_config, kwargs)
        return super().generate(inputs, generation_config, **kwargs)  # type: ignore[misc]

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        cache = model_kwargs.get("past_key_values")
        if cache is not None:
            cache._is_user_defined = True
        elif generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_cache()

    def train(self, mode: bool = True) -> PlacedModel:
        """A placed model only infers: raises UnsupportedCallError for mode True."""
        if mode:
            raise UnsupportedCallError(
                "a placed model computes no gradients; train the source model and compile that"
            )
        return cast(PlacedModel, super().train(False))

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights as they lie in memory; with `return_buffers` also the KV pool."""
        engine = self._runner.engine
        return engine.weight_bytes + (engine.pool.nbytes if return_buffers else 0)

    def __repr__(self) -> str:
        engine, kind = self._runner.engine, type(self).__name__
        name = f"{self._name}, " if self._name else ""
        return (
            f"{kind}({name}{engine.weight_bytes / 2**20:.1f} MiB of weights, {len(engine.pool.caches)} "
            f"layers, KV cache of {engine.pool.capacity} tokens, {engine.dtype} on {engine.device})"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise UnsupportedCallError(
            "a placed model cannot be copied, it owns packed weights and a KV pool",
            hint="share it (several generations live side by side), or `ktc.load` the artifact again",
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UnsupportedCallError(
            "a placed model cannot be pickled or copied",
            hint="save the artifact and `ktc.load` it where it is needed",
        )


def _refuse_arguments(
    inputs_embeds: Any, labels: Any, output_attentions: Any, output_hidden_states: Any, others: dict[str, Any]
) -> None:
    if inputs_embeds is not None:
        raise UnsupportedCallError(
            "a placed model takes input_ids, not inputs_embeds: the embedding is part of the compiled graph"
        )
    if labels is not None:
        raise UnsupportedCallError(
            "a placed model computes no loss; take the logits and torch.nn.functional.cross_entropy"
        )
    if output_attentions or output_hidden_states:
        what = "attention weights" if output_attentions else "hidden states"
        raise UnsupportedCallError(
            f"a placed model does not give out {what}: kernels do not keep them",
            hint="run the source model eagerly to look inside, or compare with `ktc verify`",
        )
    given = sorted(name for name, value in others.items() if value is not None and name not in _IGNORED)
    if given:
        raise UnsupportedCallError(
            f"forward of a placed model does not take {', '.join(given)}: the graph has no such input"
        )


# Arguments that generate() or callers pass along and that change nothing for a graph of one sequence kind.
_IGNORED = frozenset({"cache_position", "token_type_ids", "num_items_in_batch", "is_first_iteration"})


for _name, _method in refused_methods().items():
    setattr(PlacedModel, _name, _method)

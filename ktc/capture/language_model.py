"""Captures a causal language model as one graph over a flat ragged batch with paged key/value caches."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from ktc.capture import interfaces
from ktc.capture.captured import Captured
from ktc.capture.errors import CaptureError
from ktc.capture.mixing import check_mixing
from ktc.capture.run import graph_module, make_tracer, stamped_caches, trace
from ktc.capture.symbols import Dims

INPUTS: tuple[tuple[str, tuple[int | str, ...], torch.dtype], ...] = (
    ("input_ids", (1, "tokens"), torch.int64),
    ("positions", (1, "tokens"), torch.int64),
    ("seq_starts", ("starts",), torch.int32),
    ("context_lens", ("sequences",), torch.int32),
    ("block_tables", ("sequences", "table_width"), torch.int32),
    ("slots", ("tokens",), torch.int64),
    ("logits_index", ("outputs",), torch.int64),
)


def capture_language_model(model: PreTrainedModel, *, block_size: int = 32, stamp: bool = True) -> Captured:
    """The graph of a model made by `meta_model`.

    Its inputs are `INPUTS`, of T tokens and B sequences: input_ids and positions int64[1, T], seq_starts
    int32[B+1], context_lens int32[B], block_tables int32[B, NB], slots int64[T], logits_index int64[K]. It
    returns logits [1, K, V] of the tokens that logits_index picks.

    Args:
        model: parameters on the meta device or anywhere; none is read.
        block_size: tokens of one cache block.
        stamp: trace structurally equal layers once; off only to check that this changes nothing.

    Raises:
        CaptureError: the model does what one graph cannot express.
    """
    if getattr(model.config, "_attn_implementation", None) != interfaces.NAME:
        raise CaptureError(
            'the model was not built with the "ktc" attention', hint="build it with ktc.capture.meta_model"
        )
    layer_types = tuple(getattr(model.config, "layer_types", None) or ())
    strange = sorted(set(layer_types) - set(interfaces.LAYER_TYPES))
    if strange:
        raise CaptureError(f"layers of type {', '.join(strange)} are not expressed by kt.attention")
    dims = Dims()
    tracer = make_tracer(model, dims, stamp=stamp)
    inputs = {name: tracer.placeholder(name, shape, dtype) for name, shape, dtype in INPUTS}
    tracer.define_dims()
    step = interfaces.Step(
        tracer=tracer,
        dims=dims,
        descriptor=tuple(inputs[n] for n in ("seq_starts", "context_lens", "block_tables", "slots")),
        block_size=block_size,
        layer_types=layer_types,
        activations=interfaces.expert_activations(model),
    )
    interfaces.set_step(step)
    try:
        logits = trace(model, tracer, lambda: _logits(model, inputs))
    finally:
        interfaces.set_step(None)
    tracer.output(logits)
    limits = dims.limits()
    check_mixing(tracer.graph, dims.size("tokens"))
    caches = stamped_caches(tracer, step.caches)
    _check_layers(model, {spec.layer for spec in caches})
    module, parameters = graph_module(model, tracer)
    return Captured(
        module=module,
        caches=caches,
        inputs=tuple(name for name, _, _ in INPUTS),
        output_spec=None,
        kind="language_model",
        dims=dims.symbols(),
        limits=limits,
        block_size=block_size,
        parameters=parameters,
    )


def _check_layers(model: PreTrainedModel, cached: set[int]) -> None:
    """Every layer must remember through a key/value cache: what else remembers would not be captured."""
    layers = getattr(model.config, "num_hidden_layers", None)
    without = sorted(set(range(layers or 0)) - cached)
    if without or not cached:
        raise CaptureError(
            f"layers {', '.join(map(str, without)) or 'of this model'} have no attention that goes through"
            " transformers' attention interface",
            hint="layers with recurrent state or attention of their own cannot be captured yet",
        )


def _logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> Any:
    """Calls the model; where it can, only the wanted rows of the hidden states reach its head."""
    keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    extra = {"logits_to_keep": inputs["logits_index"]} if keep else {}
    out = model(
        input_ids=inputs["input_ids"], position_ids=inputs["positions"], use_cache=False, **extra
    ).logits
    return out if keep else torch.index_select(out, 1, inputs["logits_index"])

"""The "ktc" entries in transformers' registries, through which models hand over attention and experts.

No "ktc" entry is made in the mask registry: transformers then builds no mask at all, which is what we want,
since kt.attention derives causality and windows from positions.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, batched_mm_experts_forward

from ktc.capture.captured import CacheSpec
from ktc.capture.errors import CaptureError
from ktc.capture.symbols import Dims
from ktc.capture.tracer import Tracer
from ktc.dialect import deinterleave
from ktc.dialect.attention import products
from ktc.dialect.experts import ACTIVATIONS

_KT = torch.ops.kt
NAME = "ktc"
LAYER_TYPES = ("full_attention", "sliding_attention")
# Tensors that models pass on to every attention function; positions are in the keys already.
_HARMLESS = frozenset({"position_ids", "cache_position", "position_embeddings"})


@dataclass
class Step:
    """What attention and experts need of the capture that is running on this thread.

    Attributes:
        tracer: records the ops.
        dims: names the cache's number of blocks.
        descriptor: fake seq_starts, context_lens, block_tables, slots.
        block_size: tokens of a cache block.
        layer_types: kind of each layer's attention by the model's configuration, or empty.
        activations: of each experts module by id, where it is one that kt.experts knows: the activation, and
            whether gate and up are interleaved in the module's parameters.
        caches: the cache of each attention layer traced so far, by layer.
    """

    tracer: Tracer
    dims: Dims
    descriptor: tuple[torch.Tensor, ...]
    block_size: int
    layer_types: tuple[str, ...]
    activations: dict[int, tuple[str, bool]]
    caches: dict[int, CacheSpec] = field(default_factory=dict)


_RUNNING = threading.local()


def set_step(step: Step | None) -> None:
    """Makes `step` the one that this thread's registry entries record into."""
    _RUNNING.step = step


def is_running() -> bool:
    """Whether this thread captures a language model, so that `attention` has caches to write."""
    return getattr(_RUNNING, "step", None) is not None


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """One layer's attention in transformers' calling convention, recorded as kt.attention."""
    step: Step | None = getattr(_RUNNING, "step", None)
    if step is None:
        raise CaptureError('the "ktc" attention works only while a model is captured', op="attention")
    layer = getattr(module, "layer_idx", None)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = [key for key, item in other.items() if isinstance(item, torch.Tensor) and key not in _HARMLESS]
    problem = ""
    if not isinstance(layer, int):
        problem = "has no layer_idx, by which its key/value cache is named"
    elif not causal:
        problem = "is not causal"
    elif unknown:
        problem = f"gets {', '.join(unknown)}, which kt.attention does not take"
    elif attention_mask is not None:
        problem = "gets a mask of its own, which kt.attention does not take"
    elif dropout:
        problem = "drops out weights: put the model in eval mode"
    elif layer < len(step.layer_types):
        kind = step.layer_types[layer]
        if kind == "sliding_attention" and sliding_window is None:
            problem = "slides by a mask only: its window does not reach the attention function"
    if problem or not isinstance(layer, int):
        name = type(module).__name__
        raise CaptureError(f"attention layer {layer} ({name}) {problem}", op="attention", module=name)
    key_cache, value_cache = _cache(step, layer, query, key, value, int(sliding_window or 0))
    out = _KT.attention.default(
        query,
        key,
        value,
        key_cache,
        value_cache,
        *step.descriptor,
        float(scaling if scaling is not None else query.shape[-1] ** -0.5),
        int(sliding_window or 0),
        float(softcap or 0.0),
        s_aux,
    )
    return out, None


def _cache(
    step: Step, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The fake cache tensors of a layer, of the dimensions that its keys and values have."""
    if layer in step.caches:
        raise CaptureError(f"two attention calls use the key/value cache of layer {layer}", op="attention")
    heads = int(key.shape[1])
    spec = CacheSpec(
        layer=layer,
        key=f"kv.{layer}.key",
        value=f"kv.{layer}.value",
        heads=heads,
        key_dim=int(key.shape[3]),
        value_dim=int(value.shape[3]),
        window=window,
        products=products({"q": query, "v": value}),
    )
    step.caches[layer] = spec
    tensors = []
    for target, dim in ((spec.key, spec.key_dim), (spec.value, spec.value_dim)):
        fake = step.dims.tensor(("blocks", heads, step.block_size, dim), key.dtype)
        step.tracer.attribute_node(target, fake)
        tensors.append(fake)
    return tensors[0], tensors[1]


def _experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """One layer's routed experts in transformers' calling convention, recorded as kt.experts."""
    step: Step | None = getattr(_RUNNING, "step", None)
    found = step.activations.get(id(module)) if step is not None else None
    if found is None:
        # Experts of another form run as torch ops: each token gathers the weights of its experts.
        result: torch.Tensor = batched_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
        return result
    activation, interleaved = found
    up, down = module.gate_up_proj, module.down_proj
    biases = (module.gate_up_proj_bias, module.down_proj_bias) if module.has_bias else (None, None)
    if module.is_transposed:
        up, down = _KT.expert_rows.default(up, interleaved), _KT.expert_rows.default(down)
    if interleaved and biases[0] is not None:
        biases = (_KT.deinterleave.default(biases[0]), biases[1])
    out: torch.Tensor = _KT.experts.default(
        hidden_states, top_k_index, top_k_weights, up, down, *biases, activation
    )
    return out


def expert_activations(root: nn.Module) -> dict[int, tuple[str, bool]]:
    """The kt.experts activation of each experts module by id, found by running its gate on random data.

    With it, whether the gate takes gate and up interleaved; only transposed parameters may be so.
    """
    found: dict[int, tuple[str, bool]] = {}
    generator = torch.Generator().manual_seed(0)
    x = 6.0 * torch.randn(5, 32, generator=generator)
    for module in root.modules():
        gate = getattr(module, "_apply_gate", None)
        if gate is None or not hasattr(module, "gate_up_proj") or not getattr(module, "has_gate", False):
            continue
        if getattr(module, "has_post_expert_norm", False):
            continue
        try:
            result = gate(x.clone())
        except Exception:  # a gate of another form
            continue
        orders = (False, True) if getattr(module, "is_transposed", False) else (False,)
        for name, interleaved in itertools.product(ACTIVATIONS, orders):
            expected = ACTIVATIONS[name](deinterleave.reference(x) if interleaved else x)
            if result.shape == (5, 16) and torch.allclose(result, expected, rtol=1e-6, atol=1e-6):
                found[id(module)] = name, interleaved
    return found


AttentionInterface.register(NAME, attention)
ALL_EXPERTS_FUNCTIONS.register(NAME, _experts)

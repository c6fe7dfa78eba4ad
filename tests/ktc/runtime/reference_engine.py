"""A reference engine for tests: an eager Hugging Face model whose attention is `kt.attention`, paged."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

import ktc.dialect  # noqa: F401  (registers torch.ops.kt)
from ktc.runtime import KvPool, PlacedModel, Step, placed_model

_NAME = "ktc_runtime_test"
_current = threading.local()


def _attend(
    module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scaling: float, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    step, pool = _current.step, _current.pool
    layer = pool.caches[module.layer_idx]
    out = torch.ops.kt.attention(
        q, k, v, pool.tensors[layer.key], pool.tensors[layer.value],
        step.seq_starts, step.context_lens, step.block_tables, step.slots,
        float(scaling), int(kwargs.get("sliding_window") or 0),
    )  # fmt: skip
    return out, None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)


@dataclass(frozen=True)
class Layer:
    """The layout of one layer's cache."""

    layer: int
    key: str
    value: str
    heads: int
    key_dim: int
    value_dim: int


class ReferenceEngine:
    """Runs steps on a copy of an eager model. `runs` keeps the (phase, tokens) of every step."""

    def __init__(self, model: PreTrainedModel, tokens: int, block_size: int) -> None:
        self.model = copy.deepcopy(model)
        self.model.config._attn_implementation = _NAME
        self.config: PretrainedConfig = self.model.config
        c = self.config
        layers = [
            Layer(i, f"kv.{i}.key", f"kv.{i}.value", c.num_key_value_heads, c.head_dim, c.head_dim)
            for i in range(c.num_hidden_layers)
        ]
        self.pool = KvPool(layers, num_blocks=-(-tokens // block_size), block_size=block_size)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.weight_bytes = sum(p.nbytes for p in model.parameters())
        self.runs: list[tuple[str, int]] = []
        self.fail_at: int | None = None

    def run(self, step: Step) -> torch.Tensor:
        self.runs.append((step.phase, step.input_ids.shape[1]))
        if self.fail_at is not None and len(self.runs) >= self.fail_at:
            raise RuntimeError("the test pulled the plug")
        _current.step, _current.pool = step, self.pool
        out = self.model(
            input_ids=step.input_ids,
            position_ids=step.positions,
            use_cache=False,
            logits_to_keep=step.logits_index,
        )
        logits: torch.Tensor = out.logits[0]
        return logits


def place(model: PreTrainedModel, tokens: int = 512, block_size: int = 8, **options: Any) -> PlacedModel:
    """A placed model that computes what `model` computes."""
    with torch.device("meta"):
        skeleton = type(model)(copy.deepcopy(model.config))
    skeleton.generation_config = copy.deepcopy(model.generation_config)
    placed = placed_model(skeleton, ReferenceEngine(model, tokens, block_size), **options)
    assert isinstance(placed, PlacedModel)
    return placed

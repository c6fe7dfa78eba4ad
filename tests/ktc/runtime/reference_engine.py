"""A reference engine for tests: the captured graph on real tensors, every op in plain torch."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ktc.capture import capture_language_model, materialise, meta_model
from ktc.runtime import KvPool, PlacedModel, Step, placed_model


class ReferenceEngine:
    """Runs steps of the captured graph with the weights of an eager model.

    Attributes:
        runs: (phase, tokens) of every step.
        fail_at: the step, counted from 1, from which on `run` raises.
    """

    def __init__(
        self, skeleton: PreTrainedModel, model: PreTrainedModel, tokens: int, block_size: int
    ) -> None:
        captured = capture_language_model(skeleton, block_size=block_size)
        self.config = skeleton.config
        self.pool = KvPool(captured.caches, num_blocks=-(-tokens // block_size), block_size=block_size)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.weight_bytes = sum(p.nbytes for p in model.parameters())
        self.runs: list[tuple[str, int]] = []
        self.fail_at: int | None = None
        self._graph = materialise(captured, model.state_dict(), self.pool.tensors)

    def run(self, step: Step) -> torch.Tensor:
        """One step of the graph."""
        self.runs.append((step.phase, step.input_ids.shape[1]))
        if self.fail_at is not None and len(self.runs) >= self.fail_at:
            raise RuntimeError("the test pulled the plug")
        logits: torch.Tensor = self._graph(*step.inputs)[0]
        return logits


def place(
    model: PreTrainedModel, tokens: int = 512, block_size: int = 8, prefill_chunk: int = 512
) -> PlacedModel:
    """A placed model that computes what the eager `model` computes."""
    skeleton = meta_model(model.config)
    engine = ReferenceEngine(skeleton, model, tokens, block_size)
    placed = placed_model(
        skeleton, engine, generation_config=model.generation_config, prefill_chunk=prefill_chunk
    )
    assert isinstance(placed, PlacedModel)
    return placed


def engine_of(model: PlacedModel) -> ReferenceEngine:
    """The engine behind a model made by `place`."""
    assert isinstance(model.engine, ReferenceEngine)
    return model.engine

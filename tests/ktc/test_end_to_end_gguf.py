"""A GGUF model end to end where its families do not matter: prompts longer than a step, files in parts."""

from __future__ import annotations

from pathlib import Path

import torch
from support.families import PREFILL, PROGRAM, Case, sequence, steps
from support.gguf_files import write_gguf
from support.tiny_models import tiny_model

import ktc
from ktc.api import load_compiled


def test_more_tokens_than_a_step(tmp_path: Path) -> None:
    """A prompt longer than one prefill step and several cache blocks."""
    case = Case("llama", tmp_path, "f32")
    object.__setattr__(case.model._runner, "prefill_chunk", 32)
    ids = torch.randint(3, 500, (1, 150), generator=torch.Generator().manual_seed(6))
    assert case.error(ids, torch.ones_like(ids), prefill=145) < 1e-5


def test_split_file(tmp_path: Path) -> None:
    """A model in several files is one model."""
    model = tiny_model("llama")
    first = write_gguf(model, tmp_path / "m.gguf", "f32", split=3)
    compiled, placement = ktc.compile(PROGRAM.format(name="LlamaForCausalLM", library="llama", path=first))
    ids, mask = sequence()
    expected, got = (steps(m, ids, mask, PREFILL) for m in (model, load_compiled(compiled, placement)))
    assert float((got - expected).norm() / expected.norm()) < 1e-5

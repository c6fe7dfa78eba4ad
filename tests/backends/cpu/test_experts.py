"""cpu.experts against the dialect's reference on the weights that the packed blocks mean."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.cpu.experts import experts, pack, packed_bytes
from ktc.backends.cpu.library import OperandError
from ktc.backends.registry import Weight
from support.gguf_files import write_gguf
from support.packed_weights import columns_step, dense, make_blocks
from support.tiny_models import tiny_model

import ktc
from ktc.dialect.experts import reference

COUNT, CHOSEN = 5, 2


def packed_experts(format: str, rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A packed weight of `COUNT` experts, and what it means."""
    blocks = make_blocks(format, COUNT * rows, columns, seed)
    weight = Weight("experts", format, (COUNT, rows, columns))
    room = torch.zeros(packed_bytes(weight) + 64, dtype=torch.uint8)
    start = -room.data_ptr() % 64
    out = room[start : start + packed_bytes(weight)]
    pack(blocks, weight, out)
    return out, dense(format, blocks, COUNT * rows, columns).reshape(COUNT, rows, columns)


@pytest.mark.parametrize("format", ["f32", "bf16", "q8_0", "q4_0", "q4_k", "q6_k", "mxfp4"])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_experts(level: str, format: str, tokens: int) -> None:
    step = columns_step(format)
    hidden, inner = step, 2 * step
    up, up_dense = packed_experts(format, inner, hidden, 1)
    down, down_dense = packed_experts(format, hidden, inner // 2, 2)
    torch.manual_seed(tokens)
    x = torch.randn(tokens, hidden)
    indices = torch.stack([torch.randperm(COUNT)[:CHOSEN] for _ in range(tokens)])
    weights = torch.rand(tokens, CHOSEN)
    got = experts(x, indices, weights, up, down, None, None, "silu", format, format, COUNT, inner)
    expected = reference(x.double(), indices, weights, up_dense.double(), down_dense.double())
    # two chained linears, each within the 5e-4 that int8 activations may cost at worst
    error = ((got - expected) ** 2).sum() / (expected**2).sum()
    assert error < (1e-11 if format in ("f32", "bf16") else 1e-3), f"NMSE {error:.1e}"


def test_biases_and_one_expert_with_all_tokens() -> None:
    up, up_dense = packed_experts("f32", 64, 32, 1)
    down, down_dense = packed_experts("f32", 32, 32, 2)
    x, biases = torch.randn(9, 32), (torch.randn(COUNT, 64), torch.randn(COUNT, 32))
    indices, weights = torch.full((9, 1), 3), torch.rand(9, 1)
    got = experts(x, indices, weights, up, down, *biases, "gelu_tanh", "f32", "f32", COUNT, 64)
    torch.testing.assert_close(
        got, reference(x, indices, weights, up_dense, down_dense, *biases, "gelu_tanh")
    )


def test_no_tokens_and_wrong_operands() -> None:
    up, _ = packed_experts("q8_0", 64, 32, 1)
    down, _ = packed_experts("q8_0", 32, 32, 2)
    rest = (up, down, None, None, "silu", "q8_0", "q8_0", COUNT, 64)
    none = torch.zeros(0, CHOSEN)
    assert experts(torch.zeros(0, 32), none.long(), none, *rest).shape == (0, 32)
    x, one = torch.zeros(1, 32), torch.ones(1, 1)
    with pytest.raises(OperandError, match="expert 7"):
        experts(x, torch.tensor([[7]]), one, *rest)
    with pytest.raises(OperandError, match="gate_up"):
        experts(x, torch.tensor([[0]]), one, up[:64], *rest[1:])
    with pytest.raises(OperandError, match="float32"):
        experts(x.double(), torch.tensor([[0]]), one, *rest)


@pytest.mark.parametrize("format", ["f32", "q8_0"])
def test_a_mixture_of_experts_from_gguf_to_logits(tmp_path, format: str) -> None:
    model = tiny_model("qwen3_moe")
    write_gguf(model, tmp_path / "m.gguf", format=format)
    rules = f"""
    model Qwen3MoeForCausalLM from "{tmp_path}/m.gguf"
    include "std/qwen3_moe.kt"
    device host = cpu (memory = 1GiB)
    rule everything {{ match ** place host }}
    rule experts {{ match @experts kernel cpu.experts expect layers }}
    """
    placed = ktc.compile(rules).load()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected, got = model(ids).logits, placed(ids).logits
    assert (got - expected).norm() / expected.norm() < (1e-4 if format == "f32" else 0.05)

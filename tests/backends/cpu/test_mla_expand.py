"""cpu.mla_expand is kt.mla_expand to the bit, whatever the operands' strides."""

from __future__ import annotations

import ktc.backends.cpu.mla_expand
import pytest
import torch
from ktc.backends.cpu.library import OperandError

import ktc.dialect  # noqa: F401  registers kt.mla_expand


def operands(heads: int, tokens: int, nope: int, rope: int, value: int) -> tuple[torch.Tensor, ...]:
    """As capture leaves them: queries are parts of one product, the key's part that of another."""
    queries = torch.randn(1, tokens, heads, nope + rope).transpose(1, 2)
    joined = torch.randn(1, tokens, 24 + rope)
    kv = torch.randn(1, tokens, heads * (nope + value))
    return queries[..., :nope], queries[..., nope:], kv, joined[..., 24:].unsqueeze(1)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1, 1), (3, 7, 6, 4, 5), (128, 2, 128, 64, 128), (16, 33, 128, 64, 128), (5, 0, 8, 4, 8)],
    ids=str,
)
def test_copies_exactly(shape: tuple[int, ...], threads: int) -> None:
    given = operands(*shape)
    found, expected = torch.ops.kt_cpu.mla_expand(*given), torch.ops.kt.mla_expand(*given)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.is_contiguous() and mine.shape == theirs.shape
        assert torch.equal(mine, theirs)


def test_any_strides() -> None:
    given = [x.mT.contiguous().mT for x in operands(4, 9, 8, 4, 8)]
    for mine, theirs in zip(
        torch.ops.kt_cpu.mla_expand(*given), torch.ops.kt.mla_expand(*given), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("place", "wrong", "name"),
    [
        (0, torch.zeros(1, 4, 9, 8).half(), "q_nope"),
        (1, torch.zeros(1, 3, 9, 4), "q_rope"),
        (2, torch.zeros(1, 9, 4 * 8), "kv"),
        (2, torch.zeros(1, 9, 4 * 16 + 1), "kv"),
        (3, torch.zeros(1, 4, 9, 4), "k_rope"),
    ],
)
def test_refuses(place: int, wrong: torch.Tensor, name: str) -> None:
    given = list(operands(4, 9, 8, 4, 8))
    given[place] = wrong
    with pytest.raises(OperandError, match=f"`{name}`"):
        torch.ops.kt_cpu.mla_expand(*given)

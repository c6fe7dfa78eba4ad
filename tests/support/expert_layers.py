"""Layers of random routed experts: packed, and what they mean, for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ktc.backends.cpu.experts import experts, pack
from ktc.backends.cpu.packed_matrices import packed_bytes
from ktc.backends.registry import Weight
from support.packed_weights import (
    FLOATS,
    aligned,
    as_bf16,
    as_codes,
    columns_step,
    dense,
    make_blocks,
    rounded,
)

from ktc.dialect.experts import ACTIVATIONS, reference


def seen(x: torch.Tensor, format: str, tokens: int, mean: int) -> torch.Tensor:
    """Activations of one of an expert's `tokens` tokens as the kernel of this format reads them, in float64.

    `mean` is the number of tokens that an expert has on average.
    """
    if rounded(format, tokens):
        return as_bf16(x)
    return x.double() if format in FLOATS else as_codes(x.float(), format, mean)


@dataclass
class Layer:
    """Packed experts, what they mean in float64, and biases."""

    up_format: str
    down_format: str
    up: torch.Tensor
    down: torch.Tensor
    up_dense: torch.Tensor
    down_dense: torch.Tensor
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    gate: str = "silu"

    @property
    def hidden(self) -> int:
        return self.up_dense.shape[2]

    def __call__(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The kernel's result."""
        count, inner, _ = self.up_dense.shape
        return experts(
            x, indices, weights, self.up, self.down, self.up_bias, self.down_bias, self.gate,
            self.up_format, self.down_format, count, inner,
        )  # fmt: skip

    def exact(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The result in float64 on the activations as they are."""
        biases = (None if bias is None else bias.double() for bias in (self.up_bias, self.down_bias))
        return reference(
            x.double(), indices, weights.double(), self.up_dense, self.down_dense, *biases, self.gate
        )

    def ladder(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The result in float64 on the activations as the kernel quantises or rounds them, of x and after the gate."""
        out = torch.zeros(x.shape, dtype=torch.float64)
        shares = torch.bincount(indices.reshape(-1), minlength=len(self.up_dense)).tolist()
        mean = indices.numel() // sum(share > 0 for share in shares)
        for token, choice in torch.cartesian_prod(torch.arange(len(x)), torch.arange(indices.shape[1])):
            expert = int(indices[token, choice])
            hidden = self.up_dense[expert] @ seen(x[token], self.up_format, shares[expert], mean)
            if self.up_bias is not None:
                hidden += self.up_bias[expert]
            hidden = ACTIVATIONS[self.gate](hidden)
            hidden = self.down_dense[expert] @ seen(hidden, self.down_format, shares[expert], mean)
            if self.down_bias is not None:
                hidden += self.down_bias[expert]
            out[token] += weights[token, choice].double() * hidden
        return out


def make_packed(
    format: str, count: int, rows: int, columns: int, seed: int, code: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A packed weight of `count` experts, and what it means."""
    blocks = make_blocks(format, count * rows, columns, seed, code)
    weight = Weight("experts", format, (count, rows, columns))
    out = aligned(packed_bytes(weight))
    pack(blocks, weight, out)
    return out, dense(format, blocks, count * rows, columns).double().reshape(count, rows, columns)


def make_layer(
    up_format: str,
    down_format: str = "",
    count: int = 5,
    hidden: int = 0,
    inner: int = 0,
    code: int | None = None,
) -> Layer:
    """Random experts; sizes are the smallest ones that are no power of two where the formats allow it."""
    down_format = down_format or up_format
    hidden = hidden or max(96, columns_step(up_format))
    inner = inner or max(96, columns_step(down_format))
    up = make_packed(up_format, count, 2 * inner, hidden, 1, code)
    down = make_packed(down_format, count, hidden, inner, 2, code)
    return Layer(up_format, down_format, up[0], down[0], up[1], down[1])


def make_input(layer: Layer, tokens: int, chosen: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations, and a choice of distinct experts."""
    count = layer.up_dense.shape[0]
    torch.manual_seed(tokens)
    indices = torch.stack([torch.randperm(count)[:chosen] for _ in range(tokens)])
    # Keeps hidden values in the range where gates are not linear: packed codes mean large weights.
    scale = 1 / layer.up_dense.square().mean().sqrt() / layer.hidden**0.5
    return torch.randn(tokens, layer.hidden) * float(scale), indices, torch.rand(tokens, chosen)

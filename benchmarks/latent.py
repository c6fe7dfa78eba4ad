"""Not a benchmark: latent attention for `attention.py`, beside torch's operators on DeepSeek-V3's sizes.

torch's side is the formulation that papers and models give: with few new tokens queries are absorbed and meet the
latents, with many each head's keys and values are made from the latents; on bf16, which torch multiplies fastest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from ktc.backends.cpu import packed_matrices
from ktc.backends.registry import Weight

from benchmarks.machine import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from support.packed_weights import aligned, dense, make_blocks, nmse

HEADS, NOPE, ROPE, LATENT, VALUE = 128, 128, 64, 512, 128
BLOCK = 32
FORMAT = "q8_0"
"""Of the two weights, as llama-quantize stores them."""


def multiply_adds(new: int, context: int, expanded: bool) -> float:
    """Of one step, both projections included."""
    pairs = new * (context - new) + new * (new + 1) / 2
    projected = LATENT * (NOPE + VALUE) * (context if expanded else new)
    return HEADS * (pairs * (NOPE + ROPE + VALUE if expanded else 2 * LATENT + ROPE) + projected)


class Layer:
    """The weights of one layer, packed and dense."""

    def __init__(self) -> None:
        self.packed: list[torch.Tensor] = []
        self.dense: list[torch.Tensor] = []
        for seed, (rows, columns) in enumerate(((LATENT, NOPE), (VALUE, LATENT))):
            blocks = make_blocks(FORMAT, HEADS * rows, columns, seed)
            weight = Weight("w", FORMAT, (HEADS, rows, columns))
            out = aligned(packed_matrices.packed_bytes(weight))
            packed_matrices.pack(blocks, weight, out)
            self.packed.append(out)
            self.dense.append(dense(FORMAT, blocks, HEADS * rows, columns).view(HEADS, rows, columns))
        self.scale = 2 / (float(self.dense[0].square().mean().sqrt()) * (NOPE * LATENT) ** 0.5)

    def operands(self, new: int, context: int, dtype: torch.dtype) -> dict[str, Any]:
        """Of one step of one sequence, random."""
        blocks = -(-context // BLOCK)
        queries = torch.randn(1, new, HEADS, NOPE + ROPE).transpose(1, 2)
        joined = torch.randn(1, new, LATENT + ROPE)
        return {
            "q_nope": queries[..., :NOPE], "q_rope": queries[..., NOPE:],
            "latent": joined[..., :LATENT], "k_rope": joined[..., LATENT:].unsqueeze(1),
            "w_key": self.packed[0], "w_value": self.packed[1],
            "key_cache": torch.randn(blocks, 1, BLOCK, LATENT).to(dtype),
            "value_cache": torch.randn(blocks, 1, BLOCK, ROPE).to(dtype),
            "seq_starts": torch.tensor([0, new], dtype=torch.int32),
            "context_lens": torch.tensor([context], dtype=torch.int32),
            "block_tables": torch.arange(blocks)[None].int(), "slots": torch.arange(context - new, context),
            "scale": self.scale,
        }  # fmt: skip

    def ours(self, operands: dict[str, Any], form: str = "auto") -> Callable[[], Any]:
        """A call of the kernel."""
        formats = {"key_format": FORMAT, "value_format": FORMAT, "value_dim": VALUE}
        return lambda: torch.ops.kt_cpu.mla_attention(**operands, **formats, form=form)

    def error(self, operands: dict[str, Any], form: str = "auto") -> float:
        """NMSE of the last tokens against the dialect's op on the weights' exact values in float64."""
        last, new = dict(operands), min(8, operands["q_nope"].shape[2])
        for name in ("q_nope", "q_rope", "k_rope"):
            last[name] = operands[name][:, :, -new:]
        last["latent"], last["slots"] = operands["latent"][:, -new:], operands["slots"][-new:]
        last["seq_starts"] = torch.tensor([0, new], dtype=torch.int32)
        found = self.ours(operands, form)()[:, -new:]
        exact = {name: last[name].double() for name in ("q_nope", "q_rope", "latent", "k_rope")}
        weights = {"w_key": self.dense[0].double(), "w_value": self.dense[1].double()}
        return float(nmse(found, torch.ops.kt.mla_attention(**{**last, **weights, **exact})))

    def peer(self, new: int, context: int, dtype: torch.dtype, expanded: bool) -> Callable[[], Any]:
        """torch on contiguous latents, in the form of few or of many new tokens."""
        w_key, w_value = (weight.to(dtype) for weight in self.dense)
        q_nope, q_rope = torch.randn(HEADS, new, NOPE).to(dtype), torch.randn(HEADS, new, ROPE).to(dtype)
        latents, rotated = torch.randn(context, LATENT).to(dtype), torch.randn(context, ROPE).to(dtype)
        attend = torch.nn.functional.scaled_dot_product_attention
        seen = torch.ones(new, context, dtype=torch.bool).tril(context - new)

        def absorb() -> torch.Tensor:
            queries = torch.cat((q_nope @ w_key.mT, q_rope), -1)
            keys = torch.cat((latents, rotated), -1)
            scores = (queries.flatten(0, 1) @ keys.T).view(HEADS, new, context) * self.scale
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            mixed: torch.Tensor = (weights.flatten(0, 1) @ latents).view(HEADS, new, LATENT) @ w_value.mT
            return mixed

        def expand() -> torch.Tensor:
            keys = torch.cat((latents @ w_key, rotated.expand(HEADS, context, ROPE)), -1)
            queries, values = torch.cat((q_nope, q_rope), -1), latents @ w_value.mT
            mask = None if new == context else seen
            return attend(
                queries[None], keys[None], values[None], mask, is_causal=mask is None, scale=self.scale
            )

        return expand if expanded else absorb

"""kt.experts: the routed experts of a mixture-of-experts layer, given each token's choice and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ktc.dialect.cost import nbytes
from ktc.dialect.spec import Cost, Effects, define


def _gpt_oss(projected: torch.Tensor) -> torch.Tensor:
    """GPT-OSS: gate and up clamped to 7, `(up + 1) * gate * sigmoid(1.702 * gate)`."""
    gate, up = projected.chunk(2, dim=-1)
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


def _gated(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def apply(projected: torch.Tensor) -> torch.Tensor:
        gate, up = projected.chunk(2, dim=-1)
        return activation(gate) * up

    return apply


ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": _gated(F.silu),
    "gelu": _gated(F.gelu),
    "gelu_tanh": _gated(lambda gate: F.gelu(gate, approximate="tanh")),
    "gpt_oss": _gpt_oss,
}


def reference(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    activation: str = "silu",
) -> torch.Tensor:
    """Sum over each token's k experts of `weight * down(activation(gate_up(x)))`.

    Args:
        x: [T, K]; indices: integers [T, k] in 0..E-1; weights: [T, k].
        gate_up: [E, 2I, K], gate rows before up rows; down: [E, K, I].
        gate_up_bias: [E, 2I]; down_bias: [E, K].
        activation: "silu", "gelu", "gelu_tanh", or "gpt_oss" (clamped).

    Returns:
        [T, K] in x's dtype.

    Raises:
        ValueError: an activation that is none of these.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"kt.experts: unknown activation {activation!r}; one of {', '.join(ACTIVATIONS)}")
    gate = ACTIVATIONS[activation]
    out = torch.zeros_like(x)
    for expert in torch.unique(indices).tolist():
        token, choice = torch.where(indices == expert)
        hidden = x[token] @ gate_up[expert].to(x.dtype).T
        if gate_up_bias is not None:
            hidden = hidden + gate_up_bias[expert].to(x.dtype)
        hidden = gate(hidden) @ down[expert].to(x.dtype).T
        if down_bias is not None:
            hidden = hidden + down_bias[expert].to(x.dtype)
        out.index_add_(0, token, (hidden * weights[token, choice, None]).to(out.dtype))
    return out


def fake(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    activation: str = "silu",
) -> torch.Tensor:
    """Shape of `reference`."""
    return torch.empty_like(x)


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """Expected reads when every token draws k of E experts independently: E * (1 - (1 - k/E)**T) experts."""
    x, indices, gate_up, down = (arguments[name] for name in ("x", "indices", "gate_up", "down"))
    tokens, chosen, experts = int(x.shape[0]), int(indices.shape[1]), int(gate_up.shape[0])
    expert_elements = (int(gate_up.numel()) + int(down.numel())) // experts
    touched = experts * (1.0 - (1.0 - min(chosen, experts) / experts) ** tokens)
    elements = round(touched * expert_elements)
    return Cost(
        2 * tokens * chosen * expert_elements,
        nbytes(x) + nbytes(indices) + nbytes(arguments["weights"]) + elements * gate_up.element_size(),
        nbytes(x),
        weight_elements=elements,
    )


SPEC = define(
    "experts(Tensor x, Tensor indices, Tensor weights, Tensor gate_up, Tensor down,"
    ' Tensor? gate_up_bias=None, Tensor? down_bias=None, str activation="silu") -> Tensor',
    reference=reference,
    fake=fake,
    cost=cost,
    weights=("gate_up", "down"),
    rowwise=True,
    effects=Effects(host_sync=True, data_dependent=True),
)

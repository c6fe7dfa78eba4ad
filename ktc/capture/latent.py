"""Multi-head latent attention (DeepSeek-V2, 2024) as kt.mla_expand and kt.attention, found by trial.

A module with the projections of DeepSeek's attention is built small, with its own class and settings, and run on random
data. Where the forward below gives the same results, it is recorded in place of the module's own. Rotated pairs may lie
elsewhere in a head than the module puts them, in queries and keys alike, which changes no score.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ktc.capture import interfaces
from ktc.capture.rotary import FORMS, Form, as_form, full_tables
from ktc.capture.stamp import fingerprint
from ktc.capture.tracer import Composite, ModuleLift, Tracer
from ktc.dialect import rotary

_KT = torch.ops.kt
_TOLERANCE = 1e-5
_PARTS = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
_SIZES = ("num_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
# Of the trial: all different, so that no exchange of two goes unseen.
_SMALL = {
    "hidden_size": 40,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "qk_head_dim": 20,
    "head_dim": 8,
}
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def latent_lifts(root: nn.Module, tracer: Callable[[], Tracer]) -> dict[int, ModuleLift]:
    """Lifts of the latent attention modules under `root` by id; they act in language models only."""
    lifts: dict[int, ModuleLift] = {}
    verified: dict[Any, tuple[Form, bool] | None] = {}
    for module in root.modules():
        if not _is_candidate(module):
            continue
        key = fingerprint(module)
        if key not in verified:
            verified[key] = find_rotation(module)
        rotation = verified[key]
        if rotation is not None:
            lifts[id(module)] = Composite(_lift(module, *rotation, tracer))
    return lifts


def _is_candidate(module: nn.Module) -> bool:
    parts = all(isinstance(getattr(module, name, None), nn.Module) for name in _PARTS)
    sizes = all(isinstance(getattr(module, name, None), int) for name in _SIZES)
    return (
        parts and sizes and isinstance(getattr(module, "scaling", None), float) and hasattr(module, "config")
    )


def find_rotation(module: Any) -> tuple[Form, bool] | None:
    """The form of the rotary tables that the module takes and whether it turns pairs side by side.

    None where `attention` does not do what the module does.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return _compare(_small(module))
    except Exception:  # built otherwise: another kind of attention
        return None


def _compare(trial: Any) -> tuple[Form, bool] | None:
    x = torch.randn(1, 5, _SMALL["hidden_size"])
    frequencies = torch.tensor([1.0, 0.5, 0.1, 0.01])
    cos, sin = rotary.reference(torch.tensor([[0, 1, 5, 17, 90]]), frequencies, 1.25)
    mask = torch.full((5, 5), -torch.inf).triu(1)[None, None]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=trial.scaling).transpose(1, 2)

    for form in FORMS:
        tables = as_form(cos, sin, form)
        try:
            given = tables if len(tables) > 1 else tables[0]
            expected = trial.forward(hidden_states=x, position_embeddings=given, attention_mask=mask)[0]
        except Exception:  # tables of another form
            continue
        for interleaved in (False, True):
            found = attention(trial, x, cos, sin, interleaved, attend)
            if float((found - expected).abs().max()) <= _TOLERANCE * float(expected.abs().max()):
                return form, interleaved
    return None


def _small(module: Any) -> Any:
    """A module of the same class and settings with few heads and channels, and random float32 parameters."""
    config = copy.deepcopy(module.config)
    for name, size in _SMALL.items():
        if hasattr(config, name):
            setattr(config, name, size)
    if getattr(module, "q_lora_rank", None) is not None:
        config.q_lora_rank = 16
    config._attn_implementation = "eager"
    with torch.device("cpu"):
        trial = type(module)(config, 0).float().eval()
    for parameter in trial.parameters():
        parameter.requires_grad_(False).copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    return trial


def attention(
    module: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, attend: Attend
) -> torch.Tensor:
    """The forward of DeepSeek's latent attention in ops of the dialect.

    Args:
        module: holds the projections, norms and sizes.
        x: [1, T, hidden]; cos, sin: [1, T, R].
        attend: (q [1, H, T, N + R], k, v [1, H, T, V]) -> [1, T, H, V].

    Returns:
        [1, T, hidden].
    """
    heads, nope, rope = module.num_heads, module.qk_nope_head_dim, module.qk_rope_head_dim
    if getattr(module, "q_lora_rank", None) is None:
        q = module.q_proj(x)
    else:
        q = module.q_b_proj(module.q_a_layernorm(module.q_a_proj(x)))
    tokens = x.shape[1]
    q = q.view(1, tokens, heads, nope + rope).transpose(1, 2)
    q_nope, q_rope = _KT.split.default(q, [nope, rope])
    latent, k_rope = _KT.split.default(module.kv_a_proj_with_mqa(x), [module.kv_lora_rank, rope])
    latent = module.kv_a_layernorm(latent)
    q_rope, k_rope = _KT.rope.default(q_rope, k_rope.view(1, 1, tokens, rope), cos, sin, interleaved)
    q, k, v = _KT.mla_expand.default(q_nope, q_rope, module.kv_b_proj(latent), k_rope)
    out: torch.Tensor = module.o_proj(attend(q, k, v).reshape(1, tokens, heads * module.v_head_dim))
    return out


def _lift(module: Any, form: Form, interleaved: bool, tracer: Callable[[], Tracer]) -> Callable[..., Any]:
    def forward(
        hidden_states: torch.Tensor,
        *args: Any,
        position_embeddings: Any = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        tables = position_embeddings if isinstance(position_embeddings, tuple) else (position_embeddings,)
        known = full_tables(list(tables), tracer())
        if args or past_key_values is not None or known is None or known[0] != form:
            return NotImplemented
        if not interfaces.is_running():
            return NotImplemented

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            scaling = float(module.scaling)
            out, _ = interfaces.attention(module, q, k, v, attention_mask, scaling=scaling, **kwargs)
            return out

        return attention(module, hidden_states, known[1], known[2], interleaved, attend), None

    return forward

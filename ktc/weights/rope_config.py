"""Rotary embedding settings: from GGUF metadata and `rope_freqs.weight` to `rope_parameters`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ktc.errors import UnsupportedModelError
from ktc.weights.hyper import Hyper

DEFAULT_BASE = 10000.0
# (low, high, original context) of the Llama 3 scaling; the published models use only this one, with factor 8
# or 32.
_LLAMA3 = (1.0, 4.0, 8192)


def rope_parameters(hyper: Hyper, head_dim: int, *, base_name: str = "rope.freq_base") -> dict[str, Any]:
    """transformers' `rope_parameters` (version 5: theta inside).

    Args:
        hyper: the model's settings.
        head_dim: elements of a head that are rotated.
        base_name: the key of the base, without prefix.
    Raises:
        UnsupportedModelError: partial rotation, an unknown scaling type, or frequencies of unknown origin.
    """
    rotated = hyper.integer("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise hyper.unsupported("rope.dimension_count", f"is {rotated}, but a head has {head_dim} elements")
    base = hyper.positive(base_name, DEFAULT_BASE)
    freqs = hyper.tensor("rope_freqs.weight", 1)
    if freqs is not None:
        return llama3_parameters(hyper, base, head_dim)
    return {"rope_theta": base, **scaling_parameters(hyper)}


def scaling_parameters(hyper: Hyper, *, log_multiplier: bool = False) -> dict[str, Any]:
    """`rope_type` and its settings from the `rope.scaling.*` keys.

    Args:
        log_multiplier: whether the caller handles `yarn_log_multiplier`; otherwise it is refused.
    """
    if hyper.has("rope.scale_linear"):  # what llama.cpp wrote before it had scaling types
        factor = hyper.positive("rope.scale_linear")
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else {"rope_type": "default"}
    key = "rope.scaling.type"
    kind = hyper.metadata.text(hyper.key(key), "none")
    if kind == "none":
        return {"rope_type": "default"}
    factor = hyper.positive("rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise hyper.unsupported(key, f"is {kind!r}; ktc knows none, linear and yarn")
    if (
        hyper.number("rope.scaling.attn_factor", 1.0) != 1.0
        or hyper.number("rope.scaling.yarn_attn_factor", 1.0) != 1
    ):
        raise hyper.unsupported("rope.scaling.yarn_attn_factor", "other values than 1 are not supported")
    if hyper.number("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        raise hyper.unsupported("rope.scaling.yarn_ext_factor", "other values than 1 are not supported")
    if not log_multiplier and hyper.number("rope.scaling.yarn_log_multiplier", 0.0) != 0:
        raise hyper.unsupported("rope.scaling.yarn_log_multiplier", "is known for DeepSeek only")
    context = hyper.integer("context_length")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": hyper.integer("rope.scaling.original_context_length", context),
        "beta_fast": hyper.positive("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": hyper.positive("rope.scaling.yarn_beta_slow", 1.0),
    }


def llama3_factors(base: float, head_dim: int, factor: float) -> npt.NDArray[np.float64]:
    """float64[head_dim / 2]: what Llama 3's scaling divides each frequency by.

    Wavelengths shorter than context / high are kept, longer than context / low divided by `factor`, and
    between them the frequency is blended linearly (Llama 3.1 reference code, `apply_scaling`).
    """
    low, high, context = _LLAMA3
    frequency = base ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    wavelength = 2 * math.pi / frequency
    smooth = np.clip((context / wavelength - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1 - smooth) / factor + smooth))


def llama3_parameters(hyper: Hyper, base: float, head_dim: int) -> dict[str, Any]:
    """The settings that explain `rope_freqs.weight`, recovered from its largest value and verified against
    it.
    """
    header = hyper.tensors["rope_freqs.weight"]
    if header.format != "f32" or header.shape != (head_dim // 2,):
        raise UnsupportedModelError(
            f"tensor 'rope_freqs.weight' is {header.format} {list(header.shape)}, expected f32 "
            f"[{head_dim // 2}]",
            file=header.file,
            tensor=header.name,
        )
    found = hyper.data(header).view("<f4").astype(np.float64)
    if (found == 1.0).all():
        return {"rope_theta": base, "rope_type": "default"}
    factor = float(found.max())
    if not np.allclose(found, llama3_factors(base, head_dim, factor), rtol=1e-4, atol=0.0):
        raise UnsupportedModelError(
            "tensor 'rope_freqs.weight' is not Llama 3's scaling of the frequencies, the only one ktc knows",
            file=header.file,
            tensor=header.name,
        )
    low, high, context = _LLAMA3
    return {
        "rope_theta": base,
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }

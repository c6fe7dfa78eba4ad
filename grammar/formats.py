"""What may follow `quant` and `cache`: names of number formats and kinds of KV cache, known without torch.

A test keeps FORMATS equal to `ktc.weights.formats`.
"""

from __future__ import annotations

from collections.abc import Mapping

FORMATS = (
    *("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
    *("iq4_nl", "iq4_xs", "mxfp4", "fp8"),
)
"""Formats a weight can be stored in; `none` keeps it as the file has it."""

CACHES: Mapping[str, Mapping[str, str]] = {
    "paged": {"dtype": "dtype", "tokens": "int"},
    "contiguous": {"dtype": "dtype", "tokens": "int"},
}
"""Kinds of KV cache and the type of each of their options."""

CACHE_DTYPES = ("f32", "f16", "bf16", "q8_0")

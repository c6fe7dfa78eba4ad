"""Signatures of the `kt` dialect's ops, so that rewrites are checked without torch.

A test keeps this table equal to the schemas that `ktc.dialect` registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Attr(NamedTuple):
    """An attribute: "int", "float", "bool", "str" or "ints", and its default (None: it must be given)."""

    type: str
    default: Any = None


class Op(NamedTuple):
    """One op.

    Attributes:
        operands: names of the tensor operands in order.
        required: how many of them must be given; the rest are optional.
        attributes: by name, in schema order. In a pattern, one that is not mentioned has its default value.
        outputs: names of the results; None for as many as the rewrite binds (`kt.split`).
        variadic: "tensors" when the operands are one list of any length (`kt.concat(a, b)`), "ints" when the
            positional arguments after the operands are (`kt.split(x, 4, 2)`), else "".
        commutative: the first two operands may be swapped.
    """

    operands: tuple[str, ...]
    required: int
    attributes: Mapping[str, Attr]
    outputs: tuple[str, ...] | None = ("out",)
    variadic: str = ""
    commutative: bool = False


def _op(
    operands: str,
    attributes: Mapping[str, Attr] | None = None,
    outputs: tuple[str, ...] | None = ("out",),
    variadic: str = "",
    commutative: bool = False,
) -> Op:
    """`operands` is written "x weight bias?", a `?` marking an optional one."""
    words = operands.split()
    required = sum(not word.endswith("?") for word in words)
    return Op(tuple(w.rstrip("?") for w in words), required, attributes or {}, outputs, variadic, commutative)


_EPS = {"eps": Attr("float")}
_NORM = {"eps": Attr("float"), "offset": Attr("float", 0.0)}
_HEADS = {"heads": Attr("int"), "nope": Attr("int")}
_APPROXIMATE = {"approximate": Attr("str", "none")}

OPS: Mapping[str, Op] = {
    "kt.embedding": _op("ids weight"),
    "kt.linear": _op("x weight bias?"),
    "kt.rms_norm": _op("x weight", _NORM),
    "kt.layer_norm": _op("x weight bias?", _EPS),
    "kt.add": _op("x y", commutative=True),
    "kt.mul": _op("x y", commutative=True),
    "kt.silu": _op("x"),
    "kt.gelu": _op("x", _APPROXIMATE),
    "kt.silu_mul": _op("gate up"),
    "kt.gelu_mul": _op("gate up", _APPROXIMATE),
    "kt.add_rms_norm": _op("x residual weight", _NORM, ("norm", "sum")),
    "kt.rotary": _op("positions inv_freq", {"scaling": Attr("float", 1.0)}, ("cos", "sin")),
    "kt.rope": _op("q k cos sin", {"interleaved": Attr("bool", False)}, ("q", "k")),
    "kt.attention": _op(
        "q k v key_cache value_cache seq_starts context_lens block_tables slots sinks?",
        {"scale": Attr("float"), "window": Attr("int", 0), "softcap": Attr("float", 0.0)},
    ),
    "kt.experts": _op(
        "x indices weights gate_up down gate_up_bias? down_bias?",
        {"activation": Attr("str", "silu")},
    ),
    "kt.router": _op(
        "logits bias?",
        {
            "top_k": Attr("int"),
            "scoring": Attr("str", "softmax"),
            "groups": Attr("int", 1),
            "kept_groups": Attr("int", 1),
            "group_score": Attr("str", "max"),
            "normalize": Attr("bool", False),
            "scale": Attr("float", 1.0),
        },
        ("weights", "indices"),
    ),
    "kt.mla_expand": _op("q_nope q_rope kv k_rope", outputs=("q", "k", "v")),
    "kt.mla_attention": _op(
        "q_nope q_rope latent k_rope w_key w_value key_cache value_cache"
        " seq_starts context_lens block_tables slots",
        {"scale": Attr("float")},
    ),
    "kt.mla_key_weight": _op("w", _HEADS),
    "kt.mla_value_weight": _op("w", _HEADS),
    "kt.expert_rows": _op("w", {"interleaved": Attr("bool", False)}),
    "kt.deinterleave": _op("x"),
    "kt.concat": _op("tensors", {"dim": Attr("int", 0)}, variadic="tensors"),
    "kt.split": _op("x", {"sizes": Attr("ints")}, outputs=None, variadic="ints"),
    "kt.transfer": _op("x", {"device": Attr("str")}),
}

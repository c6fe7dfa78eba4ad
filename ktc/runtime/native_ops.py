"""Which nodes of a placed graph run natively, and as what: the table between graphs and `cpp/program`.

An entry of `KERNELS` or `FUNCTIONS` reads one node and adds the ops that do the same. What an op of C++ takes
is said in its table (`cpp/program/ops_*.cpp`); operands that do not lie as it wants are copied first, as the
Python wrappers of the kernels do. A new kernel needs one entry here and one there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx as fx

from ktc.backends.cpu.attention import CACHE_TYPES
from ktc.backends.cpu.elementwise import (
    ADD,
    GELU_FUNCTIONS,
    GELU_MUL_FUNCTIONS,
    MUL,
    SILU,
    SILU_MUL,
)
from ktc.backends.cpu.experts import GATES
from ktc.backends.cpu.mla_attention import FORMS
from ktc.backends.cpu.packed import format_id
from ktc.dialect.router import GROUP_SCORES, SCORINGS
from ktc.runtime.native_emit import (
    TYPES,
    Emitter,
    NativeOp,
    NotNativeError,
    dense_strides,
    is_contiguous,
    row_dimensions,
)
from ktc.runtime.native_shapes import Leaf, Shapes, constant

ARITHMETIC = {"add": 0, "sub": 1, "mul": 2, "div": 3, "truediv": 3}
"""Numbers of the functions of the native op `arithmetic`."""

VIEWS = frozenset({
    "view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "expand_as", "contiguous",
    "flatten", "unflatten", "split", "chunk", "unbind", "narrow", "select", "getitem", "movedim", "swapaxes",
    "t", "to", "float", "view_as", "kt.split", "kt.transfer",
})  # fmt: skip
"""Functions and methods that give views of their operand, or copies where it does not lie right."""

COPIES = VIEWS | {"clone", "half", "bfloat16", "type_as"}


def bound(node: fx.Node) -> Mapping[str, Any]:
    """The arguments of a torch op's node by name, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    found = {a.name: a.default_value for a in schema if a.has_default_value()}
    found.update(zip((a.name for a in schema), node.args, strict=False))
    found.update(node.kwargs)
    return found


def _linear(e: Emitter, a: Mapping[str, Any]) -> None:
    x = e.rows(a["x"], 1)
    e.add(
        "linear", x, e.leaf(a["weight"]), e.vector(a["bias"]), e.result(),
        ints=(format_id(a["format"]), a["rows"], a["columns"], a["threads"]),
    )  # fmt: skip


def _embedding(kind: str) -> Callable[[Emitter, Mapping[str, Any]], None]:
    def emit(e: Emitter, a: Mapping[str, Any]) -> None:
        ids = e.contiguous(e.leaf(a["ids"]))
        ints = (format_id(a["format"]), a["rows"], a["columns"])
        e.add(kind, ids, e.leaf(a["weight"]), e.result(), ints=ints)

    return emit


def _rms_norm(e: Emitter, a: Mapping[str, Any]) -> None:
    x, weight = e.rows(a["x"], 2), e.vector(a["weight"])
    e.add("rms_norm", x, weight, e.result(), floats=(a["eps"], a["offset"]))


def _add_rms_norm(e: Emitter, a: Mapping[str, Any]) -> None:
    x, residual = e.rows(a["x"], 2), e.rows(a["residual"], 2)
    if row_dimensions(x) == row_dimensions(residual) == 2 and x.example[0] != residual.example[0]:
        x, residual = e.copy(x), e.copy(residual)
    norm, total = e.result(0), e.result(1)
    e.add("add_rms_norm", x, residual, e.vector(a["weight"]), norm, total, floats=(a["eps"], a["offset"]))


def _layer_norm(e: Emitter, a: Mapping[str, Any]) -> None:
    x = e.rows(a["x"], 2)
    e.add("layer_norm", x, e.vector(a["weight"]), e.vector(a["bias"]), e.result(), floats=(a["eps"],))


def _elementwise(*operands: str, function: Callable[[Mapping[str, Any]], int]) -> Any:
    def emit(e: Emitter, a: Mapping[str, Any]) -> None:
        x = e.rows(a[operands[0]], 1)
        y = e.rows(a[operands[1]], 1) if len(operands) > 1 else None
        e.add("elementwise", x, y, e.result(), ints=(function(a),))

    return emit


def _rope(e: Emitter, a: Mapping[str, Any]) -> None:
    cos, sin = (e.contiguous(e.floats(a[name])) for name in ("cos", "sin"))
    q, k = e.heads(a["q"]), e.heads(a["k"])
    e.add("rope", q, k, cos, sin, e.result(0), e.result(1), ints=(int(a["interleaved"]),))


def _rotary(e: Emitter, a: Mapping[str, Any]) -> None:
    positions = e.contiguous(e.leaf(a["positions"]))
    frequencies = e.vector(a["inv_freq"])
    e.add("rotary", positions, frequencies, e.result(0), e.result(1), floats=(a["scaling"],))


def _paged(e: Emitter, a: Mapping[str, Any]) -> list[Leaf]:
    """The caches, and where a step's sequences lie in them."""
    caches = [e.leaf(a[name]) for name in ("key_cache", "value_cache")]
    if any(cache.dtype not in CACHE_TYPES for cache in caches):
        raise NotNativeError(f"its cache is {caches[0].dtype}")
    names = ("seq_starts", "context_lens", "block_tables", "slots")
    return [*caches, *(e.contiguous(e.leaf(a[name])) for name in names)]


def _attention(e: Emitter, a: Mapping[str, Any]) -> None:
    q, k, v = (e.heads(a[name]) for name in "qkv")
    e.add(
        "attention", q, k, v, *_paged(e, a), e.vector(a["sinks"]), e.result(),
        ints=(a["window"],), floats=(a["scale"], a["softcap"]),
    )  # fmt: skip


def _router(e: Emitter, a: Mapping[str, Any]) -> None:
    ints = (
        a["top_k"], tuple(SCORINGS).index(a["scoring"]), a["groups"], a["kept_groups"],
        GROUP_SCORES.index(a["group_score"]), int(a["normalize"]),
    )  # fmt: skip
    logits, bias = e.heads(a["logits"]), e.vector(a["bias"])
    e.add("router", logits, bias, e.result(0), e.result(1), ints=ints, floats=(a["scale"],))


def _experts(e: Emitter, a: Mapping[str, Any]) -> None:
    indices, weights = e.leaf(a["indices"]), e.contiguous(e.floats(a["weights"]))
    if indices.dtype is not torch.int64:
        raise NotNativeError(f"its indices are {indices.dtype}")
    ints = (
        GATES.index(a["activation"]), format_id(a["gate_up_format"]), format_id(a["down_format"]),
        a["count"], a["inner"] // 2, a["threads"],
    )  # fmt: skip
    e.add(
        "experts", e.contiguous(e.floats(a["x"])), e.contiguous(indices), weights, e.leaf(a["gate_up"]),
        e.leaf(a["down"]), e.vector(a["gate_up_bias"]), e.vector(a["down_bias"]), e.result(), ints=ints,
    )  # fmt: skip


def _mla_expand(e: Emitter, a: Mapping[str, Any]) -> None:
    operands = [e.heads(a[name]) for name in ("q_nope", "q_rope", "kv", "k_rope")]
    e.add("mla_expand", *operands, e.result(0), e.result(1), e.result(2))


def _mla_attention(e: Emitter, a: Mapping[str, Any]) -> None:
    rows = [e.heads(a[name]) for name in ("q_nope", "q_rope", "latent", "k_rope")]
    ints = (format_id(a["key_format"]), format_id(a["value_format"]), FORMS.index(a["form"]))
    e.add(
        "mla_attention", *rows, e.leaf(a["w_key"]), e.leaf(a["w_value"]), *_paged(e, a), e.result(),
        ints=ints, floats=(a["scale"],),
    )  # fmt: skip


KERNELS: dict[str, Callable[[Emitter, Mapping[str, Any]], None]] = {
    "kt_cpu.linear": _linear,
    "kt_cpu.embedding": _embedding("embedding"),
    "kt_cpu.embedding_file": _embedding("embedding_file"),
    "kt_cpu.rms_norm": _rms_norm,
    "kt_cpu.add_rms_norm": _add_rms_norm,
    "kt_cpu.layer_norm": _layer_norm,
    "kt_cpu.add": _elementwise("x", "y", function=lambda a: ADD),
    "kt_cpu.mul": _elementwise("x", "y", function=lambda a: MUL),
    "kt_cpu.silu": _elementwise("x", function=lambda a: SILU),
    "kt_cpu.gelu": _elementwise("x", function=lambda a: GELU_FUNCTIONS[a["approximate"]]),
    "kt_cpu.silu_mul": _elementwise("gate", "up", function=lambda a: SILU_MUL),
    "kt_cpu.gelu_mul": _elementwise("gate", "up", function=lambda a: GELU_MUL_FUNCTIONS[a["approximate"]]),
    "kt_cpu.rope": _rope,
    "kt_cpu.rotary": _rotary,
    "kt_cpu.attention": _attention,
    "kt_cpu.mla_expand": _mla_expand,
    "kt_cpu.mla_attention": _mla_attention,
    "kt_cpu.router": _router,
    "kt_cpu.experts": _experts,
}
"""By name of the torch op: what adds the native ops of a node with these arguments."""


def _arithmetic(e: Emitter, name: str) -> None:
    if e.node.kwargs or len(e.node.args) != 2:
        raise NotNativeError(f"{name} with keywords")
    function = ARITHMETIC[name]
    a, b = e.node.args
    y = e.result()
    if y.dtype is not torch.float32:
        raise NotNativeError(f"its result is {y.dtype}")
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        e.add("arithmetic", e.floats(a), e.floats(b), y, ints=(function,))
        return
    x, value, reversed_ = (a, b, 0) if isinstance(a, fx.Node) else (b, a, 1)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NotNativeError(f"{name} with {value!r:.40}")
    source = e.floats(x)
    if reversed_ and function == ARITHMETIC["div"]:  # torch multiplies with the reciprocal
        source, reciprocal = e.fresh(source), source
        e.add("scalar", reciprocal, source, ints=(function, 1), floats=(1.0,))
        function = ARITHMETIC["mul"]
    e.add("scalar", source, y, ints=(function, reversed_), floats=(float(value),))


def _index_select(e: Emitter, name: str) -> None:
    arguments: dict[str, Any] = dict(zip(("input", "dim", "index"), e.node.args, strict=False)) | dict(
        e.node.kwargs
    )
    x, index, dim = e.leaf(arguments["input"]), e.leaf(arguments["index"]), arguments["dim"]
    if not isinstance(dim, int) or index.dtype is not torch.int64:
        raise NotNativeError("its index is not int64")
    e.add("index_select", x, e.contiguous(index), e.result(), ints=(dim % len(x.shape),))


def _sigmoid(e: Emitter, name: str) -> None:
    if e.node.kwargs or len(e.node.args) != 1:
        raise NotNativeError(f"{name} with more than one operand")
    e.add("sigmoid", e.floats(e.node.args[0]), e.result())


def _cat(e: Emitter, name: str) -> None:
    arguments: dict[str, Any] = dict(zip(("tensors", "dim"), e.node.args, strict=False)) | dict(e.node.kwargs)
    parts = [e.leaf(part) for part in arguments["tensors"]]
    y, dim = e.result(), int(arguments.get("dim", 0)) % len(e.result().shape)
    at = constant(0)
    for part in parts:
        if part.dtype is not y.dtype or len(part.shape) != len(y.shape):
            raise NotNativeError("it joins tensors of different dtypes or ranks")
        if any(at[1:]) and any(y.strides[dim][1:]):
            raise NotNativeError("two of its dimensions change with the step")
        factor, number = (at[0], y.strides[dim]) if not any(at[1:]) else (y.strides[dim][0], at)
        offset = tuple(o + factor * term for o, term in zip(y.offset, number, strict=True))
        piece = Leaf(y.storage, y.dtype, offset, part.shape, y.strides, (part.example[0], y.example[1]))
        e.add("copy", part, piece)
        at = tuple(x + length for x, length in zip(at, part.shape[dim], strict=True))


def _copy(e: Emitter, name: str) -> None:
    if name == "kt.transfer" and torch.device(str(e.node.args[1])).type != "cpu":
        raise NotNativeError("it leaves the CPU")
    x, y = e.leaf(e.node.args[0]), e.result()
    if y.dtype not in TYPES or (
        (x.dtype is not y.dtype and torch.float32 not in (x.dtype, y.dtype))
        or (x.dtype is torch.float32 and not y.dtype.is_floating_point)
        or (x.dtype in (torch.bool, torch.uint8) and x.dtype is not y.dtype)
    ):
        raise NotNativeError(f"it casts {x.dtype} to {y.dtype}")
    if x.shape != y.shape:
        if not is_contiguous(y):
            raise NotNativeError("it copies into another shape with gaps")
        strides, _ = dense_strides(x.shape)
        y = Leaf(y.storage, y.dtype, y.offset, x.shape, strides, x.example)
    e.add("copy", x, y)


FUNCTIONS: dict[str, Callable[[Emitter, str], None]] = {
    **{name: _arithmetic for name in ARITHMETIC},
    **{name: _copy for name in COPIES if name != "getitem"},
    "index_select": _index_select,
    "cat": _cat,
    "sigmoid": _sigmoid,
}
"""By name of a torch function or tensor method."""


def target_name(node: fx.Node) -> str:
    """ "linear" of torch.nn.functional.linear and of Tensor.linear, "kt_cpu.linear" of an op of ours."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return f"{namespace}.{name}"
    return str(target) if isinstance(target, str) else str(getattr(target, "__name__", target))


def emit(node: fx.Node, shapes: Shapes, constants: dict[int, torch.Tensor]) -> list[NativeOp]:
    """The native ops of a node; none for a view. Raises NotNativeError with the reason why it has none."""
    name = target_name(node)
    if node in shapes.tuples and any(target_name(user) != "getitem" for user in node.users):
        raise NotNativeError("its results are used as a list")
    if node not in shapes.leaves:
        raise NotNativeError("its shape is no affine function of the step's sizes, or depends on data")
    if name in VIEWS and all(shapes.makers[leaf.storage] is not node for leaf in shapes.leaves[node]):
        return []
    emitter = Emitter(node, shapes, constants)
    if name in KERNELS:
        KERNELS[name](emitter, bound(node))
    elif name in FUNCTIONS and not isinstance(node.target, torch._ops.OpOverload):
        FUNCTIONS[name](emitter, name)
    elif name == "kt.transfer":
        _copy(emitter, name)
    else:
        raise NotNativeError(f"{name} has no native op")
    return emitter.ops

"""Views: other arrangements of a weight's elements, folded into what is read, so that no op runs for them.

A view is exact. Those that only pick or move whole rows (`packed = True`) work on quantised blocks, which lie along a
row; the others need elements, and a quantised weight becomes float32 under them. `Recipe.then` puts a view on a recipe.

The latent attention views are those of absorbed MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1.2): the product
q_nope · (W_key latent) is (W_keyᵀ q_nope) · latent, and W_value comes after the sum over positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ktc.errors import ShapeMismatchError, WeightError

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


def _refuse(view: object, shape: Sequence[int], needs: str) -> ShapeMismatchError:
    return ShapeMismatchError(f"{view} needs {needs}, not a weight of {list(shape)}")


def _head_rows(view: MlaKeys | MlaValues, shape: Sequence[int]) -> int:
    """Rows of a head, N + V. Raises ShapeMismatchError when the rows do not divide, or N leaves none for V."""
    rows = shape[0] // view.heads if len(shape) == 2 and view.heads > 0 else 0
    if rows == 0 or shape[0] % view.heads or not 0 < view.nope < rows:
        raise _refuse(view, shape, f"[heads * (nope + value), latent] with {view.heads} heads")
    return rows


@dataclass(frozen=True, slots=True)
class MlaKeys:
    """The keys' part of DeepSeek's kv_b, transposed: [H * (N + V), L] to [H, L, N].

    Attributes:
        heads: H. nope: N, elements of a key that are not rotated.
    """

    heads: int
    nope: int
    packed: ClassVar[bool] = False

    def shape(self, shape: Sequence[int]) -> Shape:
        """The shape after it. Raises ShapeMismatchError for a weight that has no such parts."""
        _head_rows(self, shape)
        return (self.heads, shape[1], self.nope)

    def apply(self, x: Array, shape: Sequence[int]) -> Array:
        """Elements [H * (N + V), L] to elements [H, L, N]."""
        return x.reshape(self.heads, _head_rows(self, shape), -1)[:, : self.nope].swapaxes(1, 2)


@dataclass(frozen=True, slots=True)
class MlaValues:
    """The values' part of DeepSeek's kv_b: [H * (N + V), L] to [H, V, L].

    Attributes:
        heads: H. nope: N, elements of a key that are not rotated.
    """

    heads: int
    nope: int
    packed: ClassVar[bool] = True

    def shape(self, shape: Sequence[int]) -> Shape:
        """The shape after it. Raises ShapeMismatchError for a weight that has no such parts."""
        return (self.heads, _head_rows(self, shape) - self.nope, shape[1])

    def apply(self, x: Array, shape: Sequence[int]) -> Array:
        """Rows [H * (N + V), …] to rows [H, V, …]."""
        return x.reshape(self.heads, _head_rows(self, shape), -1)[:, self.nope :]


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """A matrix an expert, stored as inputs by outputs, as rows of outputs: [E, K, R] to [E, R, K].

    Attributes:
        interleaved: gate and up alternate in the file: even rows first, then odd ones.
    """

    interleaved: bool = False
    packed: ClassVar[bool] = False

    def shape(self, shape: Sequence[int]) -> Shape:
        """The shape after it. Raises ShapeMismatchError for other ranks, or an odd number of interleaved rows."""
        if len(shape) != 3 or (self.interleaved and shape[2] % 2):
            raise _refuse(self, shape, "[experts, inputs, outputs], outputs even when interleaved")
        return (shape[0], shape[2], shape[1])

    def apply(self, x: Array, shape: Sequence[int]) -> Array:
        """Elements [E, K, R] to elements [E, R, K]."""
        rows = x.reshape(tuple(shape)).swapaxes(1, 2)
        return np.concatenate([rows[:, ::2], rows[:, 1::2]], axis=1) if self.interleaved else rows


@dataclass(frozen=True, slots=True)
class Deinterleave:
    """Even elements of the last dimension first, then odd ones: a bias whose gate and up alternate."""

    packed: ClassVar[bool] = False

    def shape(self, shape: Sequence[int]) -> Shape:
        """The same shape. Raises ShapeMismatchError when the last dimension is odd."""
        if not shape or shape[-1] % 2:
            raise _refuse(self, shape, "an even last dimension")
        return tuple(shape)

    def apply(self, x: Array, shape: Sequence[int]) -> Array:
        """Elements to elements of the same shape."""
        x = x.reshape(tuple(shape))
        return np.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)


@dataclass(frozen=True, slots=True)
class ExpertColumns:
    """What `ExpertRows` undoes: rows of outputs as GPT-OSS's class holds them, [E, R, K] to [E, K, R].

    Attributes:
        interleaved: the first and the second half of the rows come to alternate.
    """

    interleaved: bool = False
    packed: ClassVar[bool] = False

    def shape(self, shape: Sequence[int]) -> Shape:
        """The shape after it. Raises ShapeMismatchError for other ranks, or an odd number of rows to interleave."""
        if len(shape) != 3 or (self.interleaved and shape[1] % 2):
            raise _refuse(self, shape, "[experts, outputs, inputs], outputs even when interleaved")
        return (shape[0], shape[2], shape[1])

    def apply(self, x: Array, shape: Sequence[int]) -> Array:
        """Elements [E, R, K] to elements [E, K, R]."""
        columns = x.reshape(tuple(shape)).swapaxes(1, 2)
        return Interleave().apply(columns, columns.shape) if self.interleaved else columns


@dataclass(frozen=True, slots=True)
class Interleave:
    """What `Deinterleave` undoes: the halves of the last dimension come to alternate."""

    packed: ClassVar[bool] = False

    def shape(self, shape: Sequence[int]) -> Shape:
        """The same shape. Raises ShapeMismatchError when the last dimension is odd."""
        return Deinterleave().shape(shape)

    def apply(self, x: Array, shape: Sequence[int]) -> Array:
        """Elements to elements of the same shape."""
        halves = x.reshape(*shape[:-1], 2, shape[-1] // 2)
        return halves.swapaxes(-1, -2).reshape(tuple(shape))


@dataclass(frozen=True, slots=True)
class DeinterleaveRows:
    """Even rows of each expert first, then odd ones: [E, R, K] to [E, R, K]."""

    packed: ClassVar[bool] = True

    def shape(self, shape: Sequence[int]) -> Shape:
        """The same shape. Raises ShapeMismatchError for other ranks and odd numbers of rows."""
        if len(shape) != 3 or shape[1] % 2:
            raise _refuse(self, shape, "[experts, outputs, inputs] with an even number of outputs")
        return tuple(shape)

    def apply(self, x: Array, shape: Sequence[int]) -> Array:
        """Rows [E, R, …] to rows [E, R, …]."""
        rows = x.reshape(shape[0], shape[1], -1)
        return np.concatenate([rows[:, ::2], rows[:, 1::2]], axis=1)


@dataclass(frozen=True, slots=True)
class GroupRows:
    """The same rows of every group: query, key or value rows of InternLM2's `wqkv`, one group a key-value head.

    [G * S, …] to [G * (stop - start), …].

    Attributes:
        groups: G. start, stop: of the S rows of a group.
    """

    groups: int
    start: int
    stop: int
    packed: ClassVar[bool] = True

    def shape(self, shape: Sequence[int]) -> Shape:
        """The shape after it. Raises ShapeMismatchError when the rows do not divide, or `stop` lies beyond them."""
        rows = shape[0] // self.groups if shape and self.groups > 0 else 0
        if rows == 0 or shape[0] % self.groups or not 0 <= self.start < self.stop <= rows:
            raise _refuse(self, shape, f"{self.groups} groups of at least {self.stop} rows")
        return (self.groups * (self.stop - self.start), *shape[1:])

    def apply(self, x: Array, shape: Sequence[int]) -> Array:
        """Rows to rows."""
        rows = shape[0] // self.groups
        return x.reshape(self.groups, rows, -1)[:, self.start : self.stop]


View = MlaKeys | MlaValues | ExpertRows | Deinterleave
"""The views that graphs ask for."""
AnyView = View | ExpertColumns | Interleave | DeinterleaveRows | GroupRows
"""Those, their inverses, and the arrangements of files."""

_OPS: Mapping[str, tuple[type[View], tuple[str, ...]]] = MappingProxyType(
    {
        "mla_key_weight": (MlaKeys, ("heads", "nope")),
        "mla_value_weight": (MlaValues, ("heads", "nope")),
        "expert_rows": (ExpertRows, ("interleaved",)),
        "deinterleave": (Deinterleave, ()),
    }
)


def is_view(op_name: str) -> bool:
    """Whether an op, with or without "kt." before its name, is a view of a weight."""
    return op_name.removeprefix("kt.") in _OPS


def view_from(op_name: str, args: Sequence[Any] | Mapping[str, Any] = ()) -> View:
    """The view that an op of the dialect stands for.

    Args:
        op_name: "kt.mla_key_weight", with or without "kt.".
        args: the arguments after the weight, in the schema's order or by name; absent ones take the schema's default.
    Raises:
        WeightError: no such view, or arguments that do not fit.
    """
    found = _OPS.get(op_name.removeprefix("kt."))
    if found is None:
        raise WeightError(f"{op_name!r} is no view of a weight", hint=f"views are {', '.join(_OPS)}")
    kind, names = found
    given = dict(args) if isinstance(args, Mapping) else dict(zip(names, args, strict=False))
    if len(given) < len(args) or not given.keys() <= set(names):
        raise WeightError(f"{op_name!r} takes {list(names)}, not {args!r}")
    if any(type(value) is not (bool if name == "interleaved" else int) for name, value in given.items()):
        raise WeightError(f"{op_name!r} takes whole numbers (`interleaved`: a bool), not {args!r}")
    try:
        return kind(**given)
    except TypeError:
        raise WeightError(f"{op_name!r} takes {list(names)}, not {args!r}") from None


def to_json(view: View) -> dict[str, Any]:
    """A view as plain values: {"view": "mla_key_weight", "heads": 16, "nope": 128}."""
    return {"view": next(name for name, (kind, _) in _OPS.items() if kind is type(view)), **asdict(view)}


def from_json(value: Mapping[str, Any]) -> View:
    """The view that `to_json` wrote. Raises WeightError for anything else."""
    name = value.get("view")
    if not isinstance(name, str):
        raise WeightError(f"{dict(value)!r} names no view")
    return view_from(name, {key: item for key, item in value.items() if key != "view"})

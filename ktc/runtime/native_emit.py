"""What turns a node into native ops works with: operands, copies of those that do not lie right, results."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx

from ktc.runtime.native_shapes import Affine, Leaf, Shapes, constant

TYPES = {
    torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int64: 3, torch.int32: 4, torch.uint8: 5,
    torch.bool: 6,
}  # fmt: skip
"""Numbers of dtypes in native programs."""


class NotNativeError(Exception):
    """Why a node cannot run natively, in words."""


@dataclass(frozen=True)
class NativeOp:
    """One op of a native program: kind and operands as in its table of C++, `name` for errors."""

    kind: str
    name: str
    operands: tuple[Leaf | None, ...]
    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()


class Emitter:
    """Collects the native ops of one node.

    Args:
        node: the node.
        shapes: what is known of the graph; new storages are added to `storage_bytes`.
        constants: real tensors by storage; constants in other formats are added.
    """

    def __init__(self, node: fx.Node, shapes: Shapes, constants: dict[int, torch.Tensor]) -> None:
        self.node = node
        self.ops: list[NativeOp] = []
        self._shapes = shapes
        self._constants = constants

    def add(
        self,
        kind: str,
        *operands: Leaf | None,
        ints: tuple[int, ...] = (),
        floats: tuple[float, ...] = (),
    ) -> None:
        """Adds an op."""
        self.ops.append(NativeOp(kind, self.node.name, operands, ints, floats))

    def result(self, index: int = 0) -> Leaf:
        """A tensor of the node's own value."""
        return self._shapes.leaves[self.node][index]

    def leaf(self, argument: object) -> Leaf:
        """The tensor that an argument names. Raises NotNativeError for anything else."""
        if not isinstance(argument, fx.Node):
            raise NotNativeError(f"an operand is {argument!r:.40}, not a tensor")
        found = self._shapes.leaves.get(argument)
        if found is None or len(found) != 1:
            raise NotNativeError(f"the shape of {argument.name} is no affine function of the step's sizes")
        if found[0].dtype not in TYPES:
            raise NotNativeError(f"{argument.name} is {found[0].dtype}")
        return found[0]

    def optional(self, argument: object) -> Leaf | None:
        """The same, or None for None."""
        return None if argument is None else self.leaf(argument)

    def floats(self, argument: object) -> Leaf:
        """A float32 tensor of any strides."""
        leaf = self.leaf(argument)
        if leaf.dtype is not torch.float32:
            raise NotNativeError(f"an operand is {leaf.dtype}, and its kernel takes float32")
        return leaf

    def rows(self, argument: object, strides: int) -> Leaf:
        """A float32 tensor whose rows lie in at most `strides` strided dimensions, copied if they do not."""
        leaf = self.floats(argument)
        return leaf if row_dimensions(leaf) <= strides else self.copy(leaf)

    def contiguous(self, leaf: Leaf) -> Leaf:
        """The tensor, copied where it is not contiguous."""
        return leaf if is_contiguous(leaf) else self.copy(leaf)

    def heads(self, argument: object) -> Leaf:
        """A float32 tensor whose last dimension is contiguous, copied if it is not."""
        leaf = self.floats(argument)
        return leaf if leaf.example[1][-1] == 1 else self.copy(leaf)

    def vector(self, argument: object) -> Leaf | None:
        """A parameter as contiguous float32; None for None."""
        if argument is None:
            return None
        leaf = self.leaf(argument)
        if leaf.dtype is torch.float32 and is_contiguous(leaf):
            return leaf
        if not leaf.dtype.is_floating_point:
            raise NotNativeError(f"a parameter is {leaf.dtype}")
        real = self._constants.get(leaf.storage)
        if real is None:
            return self.copy(leaf, torch.float32)
        shape, strides = (tuple(number[0] for number in numbers) for numbers in (leaf.shape, leaf.strides))
        fresh = self.fresh(leaf, torch.float32)
        view = torch.as_strided(real, shape, strides, real.storage_offset() + leaf.offset[0])
        self._constants[fresh.storage] = view.float().contiguous()
        return fresh

    def copy(self, leaf: Leaf, dtype: torch.dtype | None = None) -> Leaf:
        """A contiguous copy in memory of its own, made by an op."""
        fresh = self.fresh(leaf, dtype or leaf.dtype)
        self.add("copy", leaf, fresh)
        return fresh

    def fresh(self, leaf: Leaf, dtype: torch.dtype = torch.float32) -> Leaf:
        """A contiguous tensor of a leaf's shape in memory of its own."""
        strides, size = dense_strides(leaf.shape)
        storage = max(self._shapes.storage_bytes, default=0) + 1
        self._shapes.storage_bytes[storage] = tuple(number * dtype.itemsize for number in size)
        example = leaf.example[0]
        steps = [1]
        for length in reversed(example[1:]):
            steps.append(steps[-1] * length)
        shape = (example, tuple(reversed(steps[: len(example)])))
        return Leaf(storage, dtype, constant(0), leaf.shape, strides, shape)


def dense_strides(shape: tuple[Affine, ...]) -> tuple[tuple[Affine, ...], Affine]:
    """Strides of a contiguous tensor and its number of elements. Raises NotNativeError when sizes multiply."""
    size = constant(1)
    strides = []
    for length in reversed(shape):
        strides.append(size)
        if any(size[1:]) and any(length[1:]):
            raise NotNativeError("two of its dimensions change with the step")
        factor, number = (size[0], length) if not any(size[1:]) else (length[0], size)
        size = tuple(factor * term for term in number)
    return tuple(reversed(strides)), size


def is_contiguous(leaf: Leaf) -> bool:
    """Whether a tensor is contiguous at every choice of sizes."""
    step = 1
    for size, stride in zip(*(reversed(numbers) for numbers in leaf.example), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def row_dimensions(leaf: Leaf) -> int:
    """How many strided dimensions its rows lie in; 9 when a row is not contiguous."""
    shape, strides = leaf.example
    if not shape or (strides[-1] != 1 and shape[-1] != 1):
        return 9
    dims: list[tuple[int, int]] = []
    for size, stride in zip(reversed(shape[:-1]), reversed(strides[:-1]), strict=True):
        if size == 1:
            continue
        if dims and stride == dims[-1][0] * dims[-1][1]:
            dims[-1] = (dims[-1][0] * size, dims[-1][1])
        else:
            dims.append((size, stride))
    return len(dims)

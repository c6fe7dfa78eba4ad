"""Recipes: how the bytes of one parameter are made from tensors of a source.

Wherever whole rows are moved, quantised blocks (which lie along a row) survive unchanged. Views that need single
elements of a quantised weight give exact float32. The one change of values, `AddConstant`, is allowed on float32 only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ktc.errors import ShapeMismatchError, UnsupportedFormatError
from ktc.weights import formats
from ktc.weights.joins import Fp8Blocks, Join, MlaHalves, Mxfp4Blocks, viewed
from ktc.weights.tensor import RawTensor, TensorHeader
from ktc.weights.views import (
    AnyView,
    Deinterleave,
    DeinterleaveRows,
    ExpertColumns,
    ExpertRows,
    Interleave,
    MlaKeys,
    MlaValues,
)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class InterleaveHalves:
    """Undoes the row order that llama.cpp's converter gives to Llama's q and k projections.

    The converter turns each head's rows from (first half, second half), which Hugging Face's rotary embedding
    pairs, into interleaved pairs. Reading takes the even rows of each head first, then the odd ones. A 1-D
    tensor (a bias) counts as a column of rows.

    Attributes:
        heads: heads in this tensor (key-value heads for k).
    """

    heads: int

    def apply(self, data: Bytes, header: TensorHeader) -> Bytes:
        """uint8[nbytes] in file order to uint8[nbytes] in Hugging Face's order."""
        rows = data.reshape(self.heads, header.shape[0] // self.heads // 2, 2, -1)
        return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)

    def check(self, header: TensorHeader) -> None:
        """Raises ShapeMismatchError when the rows are not an even number per head, or lie within blocks."""
        in_blocks = len(header.shape) == 1 and formats.find(header.format).block_elements > 1
        if in_blocks or header.shape[0] % (2 * self.heads):
            raise ShapeMismatchError(
                f"tensor {header.name!r} has {header.shape[0]} rows, not an even number for each of "
                f"{self.heads} heads",
                file=header.file,
                tensor=header.name,
            )


@dataclass(frozen=True, slots=True)
class AddConstant:
    """Adds a constant to every element of a float32 tensor: -1 for Gemma's norms.

    llama.cpp's converter stores w + 1 rounded to float32, so w comes back within half a unit in the last
    place of w + 1; the product x * (1 + w) that the model computes is then the product with the stored value.
    """

    value: float

    def apply(self, data: Bytes, header: TensorHeader) -> Bytes:
        """uint8[nbytes] of float32 to uint8[nbytes] of float32."""
        return (data.view("<f4") + np.float32(self.value)).view(np.uint8)

    def check(self, header: TensorHeader) -> None:
        """Raises UnsupportedFormatError when the tensor is not float32."""
        if header.format != "f32":
            raise UnsupportedFormatError(
                f"tensor {header.name!r} is {header.format}; {self.value:+g} can be applied to f32 only",
                file=header.file,
                tensor=header.name,
            )


Transform = InterleaveHalves | AddConstant


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the source and what is done to it."""

    header: TensorHeader
    transforms: tuple[Transform, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes after the transforms, which keep the size."""
        return self.header.nbytes

    @property
    def name(self) -> str:
        """The tensor's name in the source."""
        return self.header.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape in the source."""
        return self.header.shape

    @property
    def format(self) -> str:
        """Its number format."""
        return self.header.format

    @property
    def file(self) -> Path | None:
        """The file that holds it."""
        return self.header.file

    def assemble(self, fetch: Callable[[TensorHeader], Bytes]) -> Bytes:
        """The bytes after the transforms; a view of the source when there are none."""
        data = fetch(self.header)
        for transform in self.transforms:
            data = transform.apply(data, self.header)
        return data


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one parameter is made.

    Attributes:
        parameter: the parameter's name in the model.
        shape: its shape in the model.
        format: the number format of its bytes.
        parts: what is put together.
        axis: 0: the parts follow each other; 1: along the second dimension, for each index of the first one
            (gate and up rows of each expert).
        how: a view of the only part, or another way to put the parts together than one after the other.
    """

    parameter: str
    shape: tuple[int, ...]
    format: str
    parts: tuple[Part | Recipe, ...]
    axis: int = 0
    how: AnyView | Join | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that `WeightSource.read` returns."""
        if self.how is not None:
            return formats.nbytes(self.format, self.shape)
        return sum(part.nbytes for part in self.parts)

    @property
    def name(self) -> str:
        """The parameter's name."""
        return self.parameter

    @property
    def file(self) -> Path | None:
        """The file of its first tensor."""
        return next((header.file for header in self.headers), None)

    @property
    def stored_format(self) -> str:
        """The format that its parts lie in where a view gives float32 of them; `format` when they differ.

        For estimates: GPT-OSS's experts are float32 only as long as no graph takes them by rows again.
        """
        if self.how is None or isinstance(self.how, Fp8Blocks | Mxfp4Blocks):
            return self.format
        found = {part.stored_format if isinstance(part, Recipe) else part.format for part in self.parts}
        return found.pop() if len(found) == 1 else self.format

    @property
    def headers(self) -> Iterator[TensorHeader]:
        """The tensors of the source it is made of, in order."""
        for part in self.parts:
            if isinstance(part, Part):
                yield part.header
            else:
                yield from part.headers

    def renamed(self, parameter: str) -> Recipe:
        """The same bytes under another parameter's name."""
        return replace(self, parameter=parameter)

    def then(self, view: AnyView) -> Recipe:
        """The recipe of the same parameter seen through a view.

        Packed rows stay packed where the view only moves rows, or undoes the arrangement that the binding had to make:
        GGUF's attn_k_b and attn_v_b, GPT-OSS's rows. Other views make float32 of a quantised format and keep floats.

        Raises:
            ShapeMismatchError: the view does not fit the shape.
        """
        try:
            shape = view.shape(self.shape)
        except ShapeMismatchError as error:
            raise ShapeMismatchError(
                f"{self.parameter!r}: {error.message}", file=self.file, tensor=self.parameter
            ) from None
        shorter = self._undone(view)
        if shorter is not None:
            return replace(shorter, parameter=self.parameter)
        elements = formats.find(self.format).block_elements == 1
        return Recipe(
            self.parameter, shape, self.format if view.packed or elements else "f32", (self,), how=view
        )

    def _undone(self, view: AnyView) -> Recipe | None:
        """What is left when the view undoes this recipe's own arrangement; None when it does not."""
        first = self.parts[0]
        if not isinstance(first, Recipe):
            return None
        match self.how, view:
            case (ExpertColumns(before), ExpertRows(after)) if before == after:
                return first
            case (ExpertColumns(False), ExpertRows(True)):
                return first.then(DeinterleaveRows())
            case (Interleave(), Deinterleave()):
                return first
            case (MlaHalves() as halves, MlaKeys(heads, nope)) if (halves.heads, halves.nope) == (
                heads,
                nope,
            ):
                return first
            case (MlaHalves() as halves, MlaValues(heads, nope)) if (halves.heads, halves.nope) == (
                heads,
                nope,
            ):
                values = self.parts[1]
                return values if isinstance(values, Recipe) else None
            case _:
                return None

    @staticmethod
    def concat(recipes: Sequence[Recipe], parameter: str = "") -> Recipe:
        """The recipe of several parameters put together along dimension 0 (rows), as fused projections need.

        Args:
            recipes: at least one.
            parameter: the new parameter's name; by default the old ones joined with "+".
        Raises:
            UnsupportedFormatError: the parts differ in format.
            ShapeMismatchError: the parts differ in another dimension than the first.
        """
        first = recipes[0]
        for other in recipes[1:]:
            if other.format != first.format:
                raise UnsupportedFormatError(
                    f"{first.parameter!r} ({first.format}) and {other.parameter!r} ({other.format}) cannot "
                    "be put together: their formats differ",
                    tensor=other.parameter,
                    hint="keep the projections apart, or give them one `quant`",
                )
            if other.shape[1:] != first.shape[1:]:
                raise ShapeMismatchError(
                    f"{first.parameter!r} {list(first.shape)} and {other.parameter!r} {list(other.shape)} "
                    "cannot be put together along rows",
                    tensor=other.parameter,
                )
        shape = (sum(recipe.shape[0] for recipe in recipes), *first.shape[1:])
        name = parameter or "+".join(recipe.parameter for recipe in recipes)
        return Recipe(name, shape, first.format, tuple(recipes))

    def assemble(self, fetch: Callable[[TensorHeader], Bytes]) -> Bytes:
        """uint8[nbytes]: the parameter's bytes, a view of the source when nothing had to be moved."""
        pieces = [part.assemble(fetch) for part in self.parts]
        if self.how is not None:
            tensors = [
                RawTensor(part.format, part.shape, piece)
                for part, piece in zip(self.parts, pieces, strict=True)
            ]
            return viewed(self.how, tensors[0]) if isinstance(self.how, AnyView) else self.how.apply(tensors)
        if len(pieces) == 1:
            return pieces[0]
        if self.axis == 0:
            return np.concatenate(pieces)
        return np.concatenate([piece.reshape(self.shape[0], -1) for piece in pieces], axis=1).reshape(-1)

    def read(self, fetch: Callable[[TensorHeader], Bytes]) -> RawTensor:
        """The parameter's bytes with format and shape.

        Raises:
            ShapeMismatchError: the bytes are not those of a tensor of this shape (a recipe made by hand).
        """
        data = self.assemble(fetch)
        wanted = formats.nbytes(self.format, self.shape)
        if data.nbytes != wanted:
            raise ShapeMismatchError(
                f"{self.parameter!r}: {data.nbytes} bytes read, {self.format} of {list(self.shape)} takes "
                f"{wanted}",
                tensor=self.parameter,
            )
        return RawTensor(self.format, self.shape, data)


def same_elements(found: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether two shapes differ in dimensions of 1 at most: [H] in the file for [1, H] in the model."""
    return [size for size in found if size != 1] == [size for size in wanted if size != 1]

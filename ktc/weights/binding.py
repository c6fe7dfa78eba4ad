"""Building recipes from headers: every check that can be made before a byte of weights is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ktc.errors import ShapeMismatchError, UnsupportedFormatError, WeightError
from ktc.weights import formats
from ktc.weights.recipe import Part, Recipe, Transform, same_elements
from ktc.weights.source import Binding
from ktc.weights.tensor import TensorHeader
from ktc.weights.views import AnyView

_HINT = f"ktc computes with {', '.join(formats.FORMATS)}"
_FP8_HINT = "only FP8 with a scale for each block of 128 by 128, `weight_scale_inv`, can be read"
Transforms = Callable[[TensorHeader], tuple[Transform, ...]]


def no_transforms(header: TensorHeader) -> tuple[Transform, ...]:
    """For sources that hold the parameters as the model wants them."""
    return ()


Piece = Part | Recipe
"""A tensor of the source, or several that together are one weight (codes and scales)."""


def make_recipe(
    parameter: str,
    shape: tuple[int, ...],
    pieces: Sequence[Piece | TensorHeader],
    axis: int = 0,
    transforms: Transforms = no_transforms,
) -> Recipe:
    """The recipe of one parameter from the tensors found for it.

    Args:
        parameter: its name in the model. shape: its shape there.
        pieces: what it is made of, in order. axis: along which they are put together.
        transforms: what to do to each piece that is a tensor.

    Raises:
        UnsupportedFormatError: a format ktc does not compute with, or pieces of different formats.
        ShapeMismatchError: the pieces do not make up the shape.
    """
    parts = [_transformed(piece, transforms) for piece in pieces]
    first = parts[0]
    for part in parts:
        _check_format(part, first, parameter)
    found = list(first.shape)
    if len(parts) > 1:
        _check_pieces(parameter, parts, axis)
        found[axis] = sum(part.shape[axis] for part in parts)
        if axis == 0 and len(shape) == len(found) + 1 and found[0] % shape[0] == 0:
            _check_experts(parameter, shape, parts)
            found = [shape[0], found[0] // shape[0], *found[1:]]
    if not same_elements(found, shape):
        raise ShapeMismatchError(
            f"tensor {first.name!r} has shape {found}, parameter {parameter!r} has {list(shape)}",
            file=first.file,
            tensor=parameter,
        )
    formats.nbytes(first.format, shape)
    return Recipe(parameter, shape, first.format, tuple(parts), axis)


def _transformed(piece: Piece | TensorHeader, transforms: Transforms) -> Piece:
    if isinstance(piece, Recipe):
        return piece
    header = piece.header if isinstance(piece, Part) else piece
    chosen = transforms(header)
    if header.format in formats.FORMATS:
        for transform in chosen:
            transform.check(header)
    return Part(header, chosen)


def _check_format(piece: Piece, first: Piece, parameter: str) -> None:
    if piece.format not in formats.FORMATS:
        raise UnsupportedFormatError(
            f"tensor {piece.name!r} of parameter {parameter!r} is {piece.format}, which ktc does not "
            "compute with",
            file=piece.file,
            tensor=parameter,
            hint=_FP8_HINT if piece.format.startswith("f8") else _HINT,
        )
    if piece.format != first.format:
        raise UnsupportedFormatError(
            f"parameter {parameter!r} is made of {first.name!r} ({first.format}) and {piece.name!r} "
            f"({piece.format}); they must have one format",
            file=piece.file,
            tensor=parameter,
        )


def _check_pieces(parameter: str, pieces: Sequence[Piece], axis: int) -> None:
    first = pieces[0]
    for piece in pieces:
        if len(piece.shape) <= axis or _without(piece.shape, axis) != _without(first.shape, axis):
            raise ShapeMismatchError(
                f"parameter {parameter!r}: {first.name!r} {list(first.shape)} and {piece.name!r} "
                f"{list(piece.shape)} do not fit together",
                file=piece.file,
                tensor=parameter,
            )


def _check_experts(parameter: str, shape: tuple[int, ...], pieces: Sequence[Piece]) -> None:
    """Matrices of single experts, one after the other, have equal rows: else one expert's rows would be another's."""
    rows = shape[0] * shape[1] // len(pieces)
    for piece in pieces:
        if piece.shape[0] != rows:
            raise ShapeMismatchError(
                f"tensor {piece.name!r} has {piece.shape[0]} rows; each part of {parameter!r} {list(shape)} has {rows}",
                file=piece.file,
                tensor=piece.name,
            )


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


@dataclass(frozen=True, slots=True)
class Way:
    """One way to make a parameter.

    Attributes:
        tensors: for each piece in order, the names it may have, best first.
        axis: along which the pieces are put together.
        view: what makes the parameter of them. shape: of the pieces put together, when a view follows.
    """

    tensors: Sequence[Sequence[str]]
    axis: int = 0
    view: AnyView | None = None
    shape: tuple[int, ...] | None = None


class Collector:
    """Gathers recipes, missing parameters and problems of one binding.

    Args:
        headers: the source's tensors.
        pieces: weights made of several tensors, by the name they would have as one.
        broken: why such a weight cannot be made, by that name.
    """

    def __init__(
        self,
        headers: Mapping[str, TensorHeader],
        pieces: Mapping[str, Recipe] = MappingProxyType({}),
        broken: Mapping[str, WeightError] = MappingProxyType({}),
    ) -> None:
        self.headers = headers
        self.known: Mapping[str, Piece | TensorHeader] = {**headers, **pieces}
        self.broken = broken
        self._there = self.known.keys() | broken.keys()
        self.recipes: dict[str, Recipe] = {}
        self.missing: dict[str, tuple[str, ...]] = {}
        self.problems: list[WeightError] = []
        self.used: set[str] = set()

    def add(
        self,
        parameter: str,
        shape: tuple[int, ...],
        ways: Sequence[Way],
        transforms: Transforms = no_transforms,
    ) -> None:
        """Binds one parameter in the first way whose tensors are all there.

        When there is none, the names of the way that has most of its tensors are reported as missing.
        """
        if not ways:
            self.missing[parameter] = ()
            return
        found = [
            [next((n for n in names if n in self._there), None) for names in way.tensors] for way in ways
        ]
        chosen = min(range(len(ways)), key=lambda index: found[index].count(None) / len(found[index]))
        way, names = ways[chosen], [name for name in found[chosen] if name is not None]
        self.use(name for name in names if name in self.known)
        if len(names) < len(found[chosen]):
            lacking = zip(way.tensors, found[chosen], strict=True)
            self.missing[parameter] = tuple(n for options, name in lacking if name is None for n in options)
            return
        broken = [self.broken[name] for name in names if name in self.broken]
        if broken:
            self.problems.append(broken[0])
            return
        pieces = [self.known[name] for name in names]
        self.attempt(parameter, lambda: _made(parameter, shape, pieces, way, transforms))

    def attempt(self, parameter: str, make: Callable[[], Recipe]) -> None:
        """Keeps the recipe that `make` gives, or the reason why it cannot."""
        try:
            self.recipes[parameter] = make()
        except WeightError as problem:
            self.problems.append(problem)

    def use(self, names: Iterable[str]) -> None:
        """Notes that some parameter takes these tensors."""
        for name in names:
            piece = self.known[name]
            self.used.add(name)
            if isinstance(piece, Recipe):
                self.used.update(header.name for header in piece.headers)

    def binding(self, ignored: Container[str] = (), layers: int | None = None) -> Binding:
        """What was found.

        Args:
            ignored: tensors that are not to be reported as unused.
            layers: of the model; tensors of further ones are explained in a note.
        """
        unused = tuple(name for name in self.headers if name not in self.used and name not in ignored)
        notes = () if layers is None else _extra_layers(unused, layers)
        return Binding(self.recipes, self.missing, unused, tuple(self.problems), notes)


def _made(
    parameter: str,
    shape: tuple[int, ...],
    pieces: Sequence[Piece | TensorHeader],
    way: Way,
    transforms: Transforms,
) -> Recipe:
    recipe = make_recipe(parameter, way.shape or shape, pieces, way.axis, transforms)
    if way.view is None:
        return recipe
    seen = recipe.then(way.view)
    if seen.shape != shape:
        raise ShapeMismatchError(
            f"tensor {recipe.parts[0].name!r} makes {list(seen.shape)}, parameter {parameter!r} has {list(shape)}",
            file=recipe.file,
            tensor=parameter,
        )
    return seen


_LAYER_NUMBER = re.compile(r"(?:blk|model\.layers)\.(\d+)\.")


def _extra_layers(unused: Sequence[str], layers: int) -> tuple[str, ...]:
    counts: dict[int, int] = {}
    for name in unused:
        match = _LAYER_NUMBER.match(name)
        if match is not None and int(match[1]) >= layers:
            counts[int(match[1])] = counts.get(int(match[1]), 0) + 1
    return tuple(
        f"layer {layer} ({count} tensors) follows the model's {layers} layers, predicts further tokens and is not used"
        for layer, count in sorted(counts.items())
    )

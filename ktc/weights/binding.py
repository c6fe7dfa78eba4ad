"""Building recipes from headers: every check that can be made before a byte of weights is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ktc.errors import ShapeMismatchError, UnsupportedFormatError, WeightError
from ktc.weights import formats
from ktc.weights.recipe import Part, Recipe, Transform, same_elements
from ktc.weights.tensor import TensorHeader

_HINT = f"ktc computes with {', '.join(formats.FORMATS)}"
_FP8_HINT = "block-scaled FP8 comes with a later issue; take the model's bf16 weights or a GGUF of it"
Transforms = Callable[[TensorHeader], tuple[Transform, ...]]


def no_transforms(header: TensorHeader) -> tuple[Transform, ...]:
    """For sources that hold the parameters as the model wants them."""
    return ()


def make_recipe(
    parameter: str,
    shape: tuple[int, ...],
    headers: Sequence[TensorHeader],
    axis: int = 0,
    transforms: Transforms = no_transforms,
) -> Recipe:
    """The recipe of one parameter from the tensors found for it.

    Args:
        parameter: its name in the model. shape: its shape there.
        headers: the pieces in order. axis: along which they are put together.
        transforms: what to do to each piece.

    Raises:
        UnsupportedFormatError: a format ktc does not compute with, or pieces of different formats.
        ShapeMismatchError: the pieces do not make up the shape.
    """
    first = headers[0]
    for header in headers:
        _check_format(header, first, parameter)
    found = list(first.shape)
    if len(headers) > 1:
        _check_pieces(parameter, headers, axis)
        found[axis] = sum(header.shape[axis] for header in headers)
        if axis == 0 and len(shape) == len(found) + 1 and found[0] % shape[0] == 0:
            # matrices of single experts, one after the other
            found = [shape[0], found[0] // shape[0], *found[1:]]
    if not same_elements(found, shape):
        raise ShapeMismatchError(
            f"tensor {first.name!r} has shape {found}, parameter {parameter!r} has {list(shape)}",
            file=first.file,
            tensor=parameter,
        )
    formats.nbytes(first.format, shape)
    parts = []
    for header in headers:
        chosen = transforms(header)
        for transform in chosen:
            transform.check(header)
        parts.append(Part(header, chosen))
    return Recipe(parameter, shape, first.format, tuple(parts), axis)


def _check_format(header: TensorHeader, first: TensorHeader, parameter: str) -> None:
    if header.format not in formats.FORMATS:
        raise UnsupportedFormatError(
            f"tensor {header.name!r} of parameter {parameter!r} is {header.format}, which ktc does not "
            "compute with",
            file=header.file,
            tensor=parameter,
            hint=_FP8_HINT if header.format.startswith("f8") else _HINT,
        )
    if header.format != first.format:
        raise UnsupportedFormatError(
            f"parameter {parameter!r} is made of {first.name!r} ({first.format}) and {header.name!r} "
            f"({header.format}); they must have one format",
            file=header.file,
            tensor=parameter,
        )


def _check_pieces(parameter: str, headers: Sequence[TensorHeader], axis: int) -> None:
    first = headers[0]
    for header in headers:
        if len(header.shape) <= axis or _without(header.shape, axis) != _without(first.shape, axis):
            raise ShapeMismatchError(
                f"parameter {parameter!r}: {first.name!r} {list(first.shape)} and {header.name!r} "
                f"{list(header.shape)} do not fit together",
                file=header.file,
                tensor=parameter,
            )


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


class Collector:
    """Gathers recipes, missing parameters and problems of one binding."""

    def __init__(self, headers: Mapping[str, TensorHeader]) -> None:
        self.headers = headers
        self.recipes: dict[str, Recipe] = {}
        self.missing: dict[str, tuple[str, ...]] = {}
        self.problems: list[WeightError] = []
        self.used: set[str] = set()

    def add(
        self,
        parameter: str,
        shape: tuple[int, ...],
        pieces: Sequence[Sequence[str]],
        axis: int = 0,
        transforms: Transforms = no_transforms,
    ) -> None:
        """Binds one parameter; `pieces` gives for each piece the names it may have."""
        found = [next((name for name in names if name in self.headers), None) for names in pieces]
        names = [name for name in found if name is not None]
        self.used.update(names)
        if not names or len(names) < len(found):
            self.missing[parameter] = tuple(n for options in pieces for n in options if n not in self.headers)
            return
        try:
            chosen = [self.headers[name] for name in names]
            self.recipes[parameter] = make_recipe(parameter, shape, chosen, axis, transforms)
        except WeightError as problem:
            self.problems.append(problem)

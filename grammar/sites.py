"""A site: what a selector sees of one module of the model. Built by the compiler, matched without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Site:
    """One module.

    Attributes:
        name: dotted name from the root, "" for the root itself.
        classes: the class's name and its bases', most derived first (without `object`).
        layer: index of the decoder layer the module lies in, or None.
        params: number of parameter elements inside, its children's included.
        bytes: their size in the model's declared dtypes.
        dtype: dtype of the module's own `weight` (or first parameter), e.g. "bfloat16"; None without one.
        shape: shape of the module's own `weight` (or first parameter); None without one.
    """

    name: str
    classes: tuple[str, ...]
    layer: int | None = None
    params: int = 0
    bytes: int = 0
    dtype: str | None = None
    shape: tuple[int, ...] | None = None

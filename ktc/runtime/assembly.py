"""How one weight of a graph is put together from the model's parameters: concatenated, and seen through views.

`quantize` makes an assembly of every concatenation and view of weights that capture or a rewrite left in the graph;
loading turns it into a recipe for the source at hand. It is plain data, so that an artifact can hold it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ktc.weights.recipe import Recipe
from ktc.weights.views import View, from_json, to_json


@dataclass(frozen=True)
class Assembly:
    """One weight.

    Attributes:
        parts: names of parameters, or assemblies, put one after the other along dimension 0.
        view: what is then done to the whole; None for nothing.
    """

    parts: tuple[str | Assembly, ...]
    view: View | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters in it, in order."""
        found: list[str] = []
        for part in self.parts:
            found.extend((part,) if isinstance(part, str) else part.parameters)
        return tuple(found)

    @property
    def views(self) -> tuple[View, ...]:
        """Every view in it, innermost first."""
        inner = tuple(view for part in self.parts if isinstance(part, Assembly) for view in part.views)
        return inner if self.view is None else (*inner, self.view)

    def recipe(self, recipes: Mapping[str, Recipe], name: str) -> Recipe:
        """How its bytes are made, from the recipes of its parameters.

        Raises:
            KeyError: a parameter without a recipe.
            WeightError: parts that cannot be put together, or a view that does not fit.
        """
        found = [recipes[p] if isinstance(p, str) else p.recipe(recipes, name) for p in self.parts]
        whole = found[0] if len(found) == 1 else Recipe.concat(found, name)
        return whole if self.view is None else whole.then(self.view)

    def __str__(self) -> str:
        """As a rewrite writes it: `mla_key_weight(model.layers.0.kv_b_proj.weight, heads = 4, nope = 16)`."""
        inner = ", ".join(map(str, self.parts))
        if len(self.parts) > 1:
            inner = f"concat({inner})"
        if self.view is None:
            return inner
        options = to_json(self.view)
        name = options.pop("view")
        return f"{name}({', '.join((inner, *(f'{key} = {value}' for key, value in options.items())))})"

    def to_json(self) -> Any:
        """A parameter's name alone, or an object."""
        parts = [part if isinstance(part, str) else part.to_json() for part in self.parts]
        return {"parts": parts, "view": None if self.view is None else to_json(self.view)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Assembly:
        """Reads what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        parts = tuple(part if isinstance(part, str) else cls.from_json(part) for part in data["parts"])
        if not parts:
            raise ValueError("a weight without parts")
        return cls(parts, None if data["view"] is None else from_json(data["view"]))

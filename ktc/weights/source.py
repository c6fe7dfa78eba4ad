"""The one interface to weights wherever they are; `opening.py` finds the one for a place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ktc.errors import MissingTensorError, WeightError
from ktc.weights.recipe import Recipe
from ktc.weights.tensor import RawTensor, TensorHeader

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = ["Binding", "RawTensor", "Recipe", "TensorHeader", "WeightSource"]


@dataclass(frozen=True)
class Binding:
    """Which parameter is made how; made from headers alone.

    Attributes:
        recipes: for every parameter that the source can provide.
        missing: for every parameter without a tensor, the names that were looked for.
        unused: tensors of the source that no parameter takes.
        problems: tensors that were found but do not fit: wrong shape, unsupported format.
        notes: what a reader may want to know of the unused tensors.
    """

    recipes: Mapping[str, Recipe]
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    problems: tuple[WeightError, ...] = ()
    notes: tuple[str, ...] = ()

    def errors(self) -> tuple[WeightError, ...]:
        """Every missing tensor and every problem as a typed error."""
        missing = tuple(
            MissingTensorError(
                f"no tensor for parameter {parameter!r}",
                tensor=parameter,
                hint=f"looked for {', '.join(names)}",
            )
            for parameter, names in self.missing.items()
        )
        return (*self.problems, *missing)


class WeightSource(ABC):
    """A model's configuration, tokenizer and tensors.

    Attributes:
        path: the file or folder; None for weights in memory.
        kind: "gguf", "safetensors" or "memory".
    """

    path: Path | None
    kind: str

    @abstractmethod
    def config(self) -> PreTrainedConfig:
        """The Hugging Face configuration; `architectures[0]` names the model class. A fresh copy at each
        call.
        """

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """A fast tokenizer with its chat template, or None when the source has none."""

    @abstractmethod
    def headers(self) -> Mapping[str, TensorHeader]:
        """Every tensor by its name in the source."""

    @abstractmethod
    def bind(self, parameters: Mapping[str, tuple[int, ...]], config: PreTrainedConfig) -> Binding:
        """Finds the recipe of every parameter (name and shape in the model); reads headers only."""

    @abstractmethod
    def data(self, header: TensorHeader) -> npt.NDArray[np.uint8]:
        """uint8[nbytes]: a tensor's bytes as they lie in the source, without a copy."""

    def read(self, recipe: Recipe) -> RawTensor:
        """A parameter's bytes with the recipe applied; a read-only view when nothing has to be moved."""
        return recipe.read(self.data)

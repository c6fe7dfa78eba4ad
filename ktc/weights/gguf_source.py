"""A GGUF model, in one file or split over several, as a source of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ktc.errors import GgufError, WeightError
from ktc.weights import formats, names
from ktc.weights.binding import Collector, Way, make_recipe
from ktc.weights.gguf import GgufFile, open_gguf
from ktc.weights.gguf_metadata import Metadata
from ktc.weights.joins import MlaHalves
from ktc.weights.recipe import Recipe, Transform
from ktc.weights.source import Binding, WeightSource
from ktc.weights.tensor import TensorHeader
from ktc.weights.views import AnyView, ExpertColumns

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_CONSUMED_BY_CONFIG = frozenset({"rope_freqs.weight"})


class GgufSource(WeightSource):
    """A GGUF model.

    Args:
        path: the file or folder as the user named it.
        files: every part in order; one for a model that is not split.

    Raises:
        GgufError: a part breaks the format, or the parts do not belong together.
    """

    kind = "gguf"

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path: Path | None = path
        self.files: tuple[GgufFile, ...] = tuple(open_gguf(file) for file in files)
        _check_split(self.files)
        self._headers = MappingProxyType(_merge(self.files))
        self._by_path = {file.path: file for file in self.files}

    @property
    def metadata(self) -> Metadata:
        """The metadata of the first part, which holds the model's."""
        return self.files[0].metadata

    @property
    def architecture(self) -> str:
        """`general.architecture`, e.g. "llama"."""
        return self.metadata.text("general.architecture")

    def config(self) -> PreTrainedConfig:
        """The configuration that the metadata describe.

        Raises:
            UnsupportedModelError: an architecture or a setting that ktc cannot express.
            MetadataError: a key is missing, has the wrong type or an impossible value.
        """
        from ktc.weights.config import config_of

        return config_of(self.metadata, self._headers, self.data)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that the metadata describe, or None when there is none.

        Raises:
            TokenizerError: an unknown kind, or lists that contradict each other.
            MetadataError: a key has the wrong type.
        """
        from ktc.weights.tokenizer import tokenizer_of

        return tokenizer_of(self.metadata)

    def headers(self) -> Mapping[str, TensorHeader]:
        """Every tensor of every part by its GGUF name."""
        return self._headers

    def data(self, header: TensorHeader) -> npt.NDArray[np.uint8]:
        """uint8[nbytes]: a tensor's bytes, a read-only view of the mapped file."""
        if header.file is None or header.file not in self._by_path:
            raise WeightError(f"tensor {header.name!r} is not of this source", tensor=header.name)
        return self._by_path[header.file].data(header)

    def bind(self, parameters: Mapping[str, tuple[int, ...]], config: PreTrainedConfig) -> Binding:
        """Finds the recipe of every parameter from headers alone."""
        heads = int(config.num_attention_heads)
        key_value_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        architecture = self.architecture

        def transforms(header: TensorHeader) -> tuple[Transform, ...]:
            return names.transforms(header.name, architecture, heads, key_value_heads)

        found = Collector(self._headers)
        layers = int(config.num_hidden_layers)
        for parameter, size in parameters.items():
            shape = tuple(size)
            halves = names.latent_halves(parameter, architecture)
            if halves is not None and all(half in self._headers for half in halves):
                found.use(halves)
                keys, values = (self._headers[half] for half in halves)
                found.attempt(parameter, partial(_latent, parameter, shape, keys, values, config))
                continue
            sources = names.ways_of(parameter, shape, architecture, layers)
            ways = [Way(s.tensors, s.axis, s.view, _held(s.view, shape)) for s in sources]
            found.add(parameter, shape, ways, transforms)
        return found.binding(_CONSUMED_BY_CONFIG, layers)


def _held(view: AnyView | None, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of the file's tensors put together, when a view makes the parameter of them."""
    if view is None:
        return None
    return (shape[0], shape[2], shape[1]) if isinstance(view, ExpertColumns) and len(shape) == 3 else shape


def _latent(
    parameter: str, shape: tuple[int, ...], keys: TensorHeader, values: TensorHeader, config: PreTrainedConfig
) -> Recipe:
    """DeepSeek's kv_b from its halves. Raises ShapeMismatchError when they do not make up the shape."""
    heads, nope = int(config.num_attention_heads), int(config.qk_nope_head_dim)
    rows = shape[0] // heads - nope
    parts = []
    for header, wanted in ((keys, (heads, shape[1], nope)), (values, (heads, rows, shape[1]))):
        flat = (wanted[0] * wanted[1], wanted[2])  # as files before April 2025 have them
        held = flat if len(header.shape) == 2 else wanted
        parts.append(replace(make_recipe(parameter, held, [header]), shape=wanted))
    plain = parts[0].format == parts[1].format and formats.find(parts[0].format).block_elements == 1
    return Recipe(
        parameter, shape, parts[0].format if plain else "f32", tuple(parts), how=MlaHalves(heads, nope)
    )


def _check_split(files: Sequence[GgufFile]) -> None:
    """Refuses parts that do not belong together (keys split.no, split.count, split.tensors.count)."""
    first = files[0]
    for number, file in enumerate(files):
        count = file.metadata.integer("split.count", 1)
        if count == 0:
            count = 1  # what some writers put into a file that is not split
        if count != len(files):
            raise GgufError(
                f"is one of {count} parts, but {len(files)} were found",
                file=file.path,
                tensor="split.count",
                hint="keep the names NAME-00001-of-0000N.gguf that the parts were written with",
            )
        if len(files) > 1 and file.metadata.integer("split.no") != number:
            raise GgufError(
                f"says it is part {file.metadata.integer('split.no') + 1}, its name says {number + 1}",
                file=file.path,
                tensor="split.no",
            )
        own = file.metadata.text("general.architecture", first.metadata.text("general.architecture"))
        if own != first.metadata.text("general.architecture"):
            raise GgufError(f"is of another architecture ({own}) than part 1", file=file.path)
    total = sum(len(file.tensors) for file in files)
    claimed = first.metadata.integer("split.tensors.count", total)
    if claimed != total:
        raise GgufError(
            f"the parts hold {total} tensors; {claimed} were announced",
            file=first.path,
            tensor="split.tensors.count",
        )


def _merge(files: Sequence[GgufFile]) -> dict[str, TensorHeader]:
    merged: dict[str, TensorHeader] = {}
    for file in files:
        for name, header in file.tensors.items():
            if name in merged:
                raise GgufError(f"tensor {name!r} is in {merged[name].file} too", file=file.path, tensor=name)
            merged[name] = header
    return merged

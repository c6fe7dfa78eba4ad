"""A Hugging Face folder (config.json, safetensors in one or several files, tokenizer) as a source."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ktc.errors import SafetensorsError, TokenizerError, WeightError
from ktc.weights.config_file import load_config
from ktc.weights.safetensors_header import MAX_HEADER_BYTES, parse_json, read_header
from ktc.weights.source import Binding, WeightSource
from ktc.weights.state_names import bind_state
from ktc.weights.tensor import TensorHeader

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class SafetensorsSource(WeightSource):
    """A folder with config.json and safetensors.

    Raises:
        SafetensorsError: a file or the index breaks its format, or a file of the index is missing.
    """

    kind = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path: Path | None = path
        self._folder = path
        self._headers = MappingProxyType(_read_folder(path))
        self._maps: dict[Path, mmap.mmap] = {}

    def config(self) -> PreTrainedConfig:
        """The configuration in config.json.

        Raises:
            UnsupportedModelError: transformers does not know the model type, or the file is not valid. Code
                that comes with a model is never run.
        """
        return load_config(self._folder / "config.json")

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The folder's tokenizer, or None when it has none.

        Raises:
            TokenizerError: transformers cannot load it without running foreign code or asking the network.
        """
        if not any((self._folder / name).is_file() for name in _TOKENIZER_FILES):
            return None
        from transformers import AutoTokenizer, PreTrainedTokenizerBase

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self._folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises bare Exception
            raise TokenizerError(f"transformers refuses the tokenizer: {error}", file=self._folder) from error
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TokenizerError(
                f"the folder holds a {type(tokenizer).__name__}, no tokenizer", file=self._folder
            )
        return tokenizer

    def headers(self) -> Mapping[str, TensorHeader]:
        """Every tensor of every file by its name."""
        return self._headers

    def bind(self, parameters: Mapping[str, tuple[int, ...]], config: PreTrainedConfig) -> Binding:
        """Finds the recipe of every parameter from headers alone."""
        return bind_state(self._headers, parameters, config)

    def data(self, header: TensorHeader) -> npt.NDArray[np.uint8]:
        """uint8[nbytes]: a tensor's bytes, a read-only view of the mapped file."""
        if header.file is None or self._headers.get(header.name) is not header:
            raise WeightError(f"tensor {header.name!r} is not of this source", tensor=header.name)
        if header.file not in self._maps:
            with header.file.open("rb") as stream:
                self._maps[header.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        mapped = self._maps[header.file]
        if header.offset + header.nbytes > len(mapped):
            raise SafetensorsError(
                "the file became shorter after it was opened", file=header.file, tensor=header.name
            )
        return np.frombuffer(mapped, np.uint8, header.nbytes, header.offset)


def _read_folder(folder: Path) -> dict[str, TensorHeader]:
    index = folder / INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        single = folder / "model.safetensors"
        if single in files:
            files = [single]  # other files beside it are copies in other forms (consolidated, adapters)
        elif len(files) > 1:
            raise SafetensorsError(
                f"{len(files)} safetensors files, but no {INDEX} that says what they hold", file=folder
            )
        return read_header(files[0])
    if index.stat().st_size > MAX_HEADER_BYTES:
        raise SafetensorsError("the index is too large", file=index)
    weight_map = parse_json(index.read_bytes(), index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise SafetensorsError("has no weight_map from tensor names to file names", file=index)
    merged: dict[str, TensorHeader] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise SafetensorsError(
                f"names the file {name!r}, which is not a safetensors file of the folder", file=index
            )
        if not (folder / name).is_file():
            raise SafetensorsError(
                f"names the file {name!r}, which is missing", file=index, hint="download all files"
            )
        merged.update(
            {t: header for t, header in read_header(folder / name).items() if weight_map.get(t) == name}
        )
    missing = [tensor for tensor in weight_map if tensor not in merged]
    if missing:
        raise SafetensorsError(
            f"{len(missing)} tensors of the index are not in their files, first {missing[0]!r}", file=index
        )
    return merged

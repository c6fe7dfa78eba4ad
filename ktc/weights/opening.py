"""Opens a model at a place: its weights, or its configuration alone, for planning where the weights are not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ktc.weights.config_file import load_config
from ktc.weights.gguf_source import GgufSource
from ktc.weights.locate import locate
from ktc.weights.safetensors_source import SafetensorsSource
from ktc.weights.source import WeightSource

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def open_source(where: str | Path) -> WeightSource:
    """Opens a model.

    Args:
        where: a `.gguf` file (any part of a split one), a folder of split GGUF files, a folder with
            config.json and safetensors, or a Hugging Face hub id ("owner/name").

    Raises:
        SourceNotFoundError: there is no such place, or nothing readable in it.
        HubError: a hub id that is neither in the local cache nor reachable.
        WeightError: the files break their format.
    """
    place = locate(where)
    if place.kind == "gguf":
        return GgufSource(place.path, place.files)
    return SafetensorsSource(place.path)


def read_config(where: str | Path) -> PreTrainedConfig:
    """The configuration at `where`: a config.json, a folder that holds one, or any place `open_source` opens.

    Raises:
        SourceNotFoundError: there is no such place, or no configuration in it.
        UnsupportedModelError: transformers does not know the model type, or the file is not valid. Code that
            comes with a model is never run.
    """
    path = Path(where).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if file.name.endswith(".json") and file.is_file():
        return load_config(file)
    return open_source(where).config()

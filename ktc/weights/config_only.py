"""A model's configuration without its weights, for planning on a machine that does not hold them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ktc.errors import UnsupportedModelError
from ktc.weights.source import open_source

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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


def load_config(file: Path) -> PreTrainedConfig:
    """The configuration in a JSON file.

    Raises:
        UnsupportedModelError: transformers does not know the model type, or the file is not valid.
    """
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            file, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises errors of many types for malformed files
        raise UnsupportedModelError(f"transformers refuses the configuration: {error}", file=file) from error
    return config

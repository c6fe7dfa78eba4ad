"""A config.json as a configuration: known to transformers, no code run, and quantised in a way that ktc reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktc.errors import UnsupportedModelError
from ktc.weights import internlm2
from ktc.weights.joins import FP8_BLOCK

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_METHODS = ("fp8", "mxfp4")


def load_config(file: Path) -> PreTrainedConfig:
    """The configuration in a JSON file.

    Raises:
        UnsupportedModelError: transformers does not know the model type, or the file is not valid.
    """
    from transformers import AutoConfig

    values = _read(file)
    if values.get("model_type") == internlm2.MODEL_TYPE:
        return internlm2.llama_config(values, file)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            file, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises errors of many types for malformed files
        raise UnsupportedModelError(f"transformers refuses the configuration: {error}", file=file) from error
    _check_quantisation(config, values.get("quantization_config"), file)
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"the configuration cannot be read: {error}", file=file) from error
    if not isinstance(values, dict):
        raise UnsupportedModelError("the configuration is not a JSON object", file=file)
    return values


def _check_quantisation(config: PreTrainedConfig, found: Any, file: Path) -> None:
    """Takes `quantization_config` off: the tensors say what they are. Raises for methods that ktc cannot read."""
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, dict) else found
    square = [FP8_BLOCK, FP8_BLOCK]
    if method == "fp8" and found.get("weight_block_size") != square:
        raise UnsupportedModelError(
            f"FP8 weights have weight_block_size {found.get('weight_block_size')!r}; ktc reads {square}",
            file=file,
        )
    if method not in _METHODS:
        raise UnsupportedModelError(
            f"the weights are quantised by {method!r}, which ktc does not read",
            file=file,
            hint=f"ktc reads {' and '.join(_METHODS)} checkpoints, plain floats, and GGUF files",
        )
    for holder in (config, config.get_text_config()):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config

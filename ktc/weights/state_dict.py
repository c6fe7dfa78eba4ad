"""Weights that are in memory already: the state dict of a model that is to be rewritten."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ktc.errors import UnsupportedFormatError, WeightError
from ktc.weights.source import Binding, WeightSource
from ktc.weights.state_names import bind_state
from ktc.weights.tensor import TensorHeader

_FORMATS: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float32: "f32",
        torch.float16: "f16",
        torch.bfloat16: "bf16",
        torch.float64: "f64",
        torch.int64: "i64",
        torch.int32: "i32",
        torch.int16: "i16",
        torch.int8: "i8",
        torch.uint8: "u8",
        torch.bool: "bool",
    }
)


class StateDictSource(WeightSource):
    """A state dict with its configuration.

    The tensors are used where they are: those on the CPU without a copy, as long as they are contiguous.

    Args:
        state_dict: tensors by parameter name. Tied parameters may appear once or several times.
        config: the model's configuration, if it has one.
        tokenizer: the model's tokenizer, if there is one.

    Raises:
        UnsupportedFormatError: a tensor's dtype is none of the known ones, or it has no data (meta device).
    """

    kind = "memory"

    def __init__(
        self,
        state_dict: Mapping[str, torch.Tensor],
        config: PreTrainedConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.path = None
        self._tensors = dict(state_dict)
        self._config = config
        self._tokenizer = tokenizer
        headers = {}
        for name, tensor in self._tensors.items():
            if tensor.is_meta or tensor.dtype not in _FORMATS:
                reason = "has no data (meta device)" if tensor.is_meta else f"has the dtype {tensor.dtype}"
                raise UnsupportedFormatError(f"tensor {name!r} {reason}", tensor=name)
            nbytes = tensor.numel() * tensor.element_size()
            headers[name] = TensorHeader(name, _FORMATS[tensor.dtype], tuple(tensor.shape), nbytes)
        self._headers = MappingProxyType(headers)

    def config(self) -> PreTrainedConfig:
        """A copy of the configuration.

        Raises:
            WeightError: the source was made without one.
        """
        if self._config is None:
            raise WeightError("these weights in memory come without a configuration")
        return copy.deepcopy(self._config)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer given, or None."""
        return self._tokenizer

    def headers(self) -> Mapping[str, TensorHeader]:
        """Every tensor by its name."""
        return self._headers

    def bind(
        self, parameters: Mapping[str, tuple[int, ...]], config: PreTrainedConfig | None = None
    ) -> Binding:
        """Finds every parameter under its own name; a tied `lm_head.weight` may be missing from the state
        dict.
        """
        return bind_state(self._headers, parameters, config)

    def data(self, header: TensorHeader) -> npt.NDArray[np.uint8]:
        """uint8[nbytes]: a tensor's bytes; a view for contiguous tensors on the CPU."""
        if self._headers.get(header.name) is not header:
            raise WeightError(f"tensor {header.name!r} is not of this source", tensor=header.name)
        tensor = self._tensors[header.name].detach().cpu().contiguous()
        view: npt.NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
        return view

"""Hyperparameters of a GGUF model: metadata below the architecture's prefix, checked for type and range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ktc.errors import MetadataError, UnsupportedModelError
from ktc.weights.gguf_metadata import Metadata, ValueType
from ktc.weights.tensor import TensorHeader

MAX_SIZE = 1 << 24
MAX_HEADS = 1 << 16

# Settings that change the numbers and that the Hugging Face class of these architectures has no field for.
_INEXPRESSIBLE = (
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attn_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
)


class Hyper:
    """Reads `{architecture}.{name}` keys.

    Attributes:
        architecture: `general.architecture`.
        tensors: the model's tensor headers, from which some settings are derived.
        data: a tensor's bytes, uint8[nbytes].
    """

    def __init__(
        self,
        metadata: Metadata,
        tensors: Mapping[str, TensorHeader],
        data: Callable[[TensorHeader], npt.NDArray[np.uint8]],
    ) -> None:
        self.metadata = metadata
        self.architecture = metadata.text("general.architecture")
        self.tensors = tensors
        self.data = data

    def key(self, name: str) -> str:
        """The full key."""
        return f"{self.architecture}.{name}"

    def has(self, name: str) -> bool:
        """Whether the key is there."""
        return self.key(name) in self.metadata

    def error(self, name: str, message: str) -> MetadataError:
        """An error about one key."""
        return self.metadata.error(self.key(name), message)

    def unsupported(self, name: str, message: str) -> UnsupportedModelError:
        """A setting that is well-formed but that ktc cannot express."""
        return UnsupportedModelError(
            f"metadata {self.key(name)!r}: {message}", file=self.metadata.file, tensor=self.key(name)
        )

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """An integer within [low, high]; a per-layer array counts when all its values are equal."""
        key = self.key(name)
        if key in self.metadata and self.metadata[key].kind is ValueType.ARRAY:
            values = set(self.metadata.integers(key))
            if len(values) != 1:
                raise self.unsupported(
                    name, "differs between layers, which this architecture's class cannot express"
                )
            (value,) = values
            if not low <= value <= high:
                raise self.error(name, f"is {value}, outside {low} to {high}")
            return value
        return self.metadata.integer(key, default, low=low, high=high)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; a float32 comes back as the shortest decimal that rounds to it (1e-05, not
        9.99…e-06).
        """
        key = self.key(name)
        value = self.metadata.number(key, default)
        if key in self.metadata and self.metadata[key].kind is ValueType.FLOAT32:
            return float(str(np.float32(value)))
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """A number above zero."""
        value = self.number(name, default)
        if value <= 0:
            raise self.error(name, f"is {value}; it must be above 0")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A bool."""
        return self.metadata.flag(self.key(name), default)

    def refuse_inexpressible(self) -> None:
        """Raises UnsupportedModelError for settings that would be ignored silently otherwise."""
        for name in _INEXPRESSIBLE:
            if self.has(name) and self.number(name) != 0:
                raise self.unsupported(
                    name, f"is {self.number(name):g}; ktc cannot express it for this architecture"
                )

    def tensor(self, name: str, rank: int) -> TensorHeader | None:
        """A tensor of the given rank, or None when there is none of this name."""
        header = self.tensors.get(name)
        if header is not None and len(header.shape) != rank:
            raise UnsupportedModelError(
                f"tensor {name!r} has {len(header.shape)} dimensions, not {rank}",
                file=header.file,
                tensor=name,
            )
        return header

    def layers(self) -> int:
        """`block_count`, without the extra blocks that predict further tokens."""
        blocks = self.integer("block_count", high=max(len(self.tensors), 1))
        extra = self.integer("nextn_predict_layers", 0, low=0)
        if extra >= blocks:
            raise self.error("nextn_predict_layers", f"is {extra} of {blocks} blocks")
        return blocks - extra

    def vocabulary(self) -> int:
        """The number of tokens, from the token list, else `vocab_size`, else the embedding's rows."""
        key = "tokenizer.ggml.tokens"
        if key in self.metadata:
            return len(self.metadata.texts(key))
        embedding = self.tensor("token_embd.weight", 2)
        return self.integer("vocab_size", embedding.shape[0] if embedding else None)

    def token_id(self, name: str, vocabulary: int) -> int | None:
        """A special token's id, checked against the vocabulary; None when the key is absent."""
        key = f"tokenizer.ggml.{name}_token_id"
        return self.metadata.integer(key, high=vocabulary - 1) if key in self.metadata else None


def special_tokens(hyper: Hyper, vocabulary: int) -> dict[str, Any]:
    """bos, eos and pad ids. eos is a list when end-of-turn or end-of-message tokens end a reply too."""
    ends = [hyper.token_id(name, vocabulary) for name in ("eos", "eot", "eom")]
    distinct = list(dict.fromkeys(end for end in ends if end is not None))
    return {
        "bos_token_id": hyper.token_id("bos", vocabulary),
        "eos_token_id": distinct if len(distinct) > 1 else next(iter(distinct), None),
        "pad_token_id": hyper.token_id("padding", vocabulary),
    }


def layer_types(hyper: Hyper, layers: int, period: int) -> list[str]:
    """Which layers see a window: all of a period but the last, unless the file gives a period or a flag for each layer.

    Args:
        period: the architecture's own.
    """
    name = "attention.sliding_window_pattern"
    key = hyper.key(name)
    if key in hyper.metadata and hyper.metadata[key].item is ValueType.BOOL:
        flags = [bool(flag) for flag in hyper.metadata[key].value]
        if len(flags) < layers:
            raise hyper.error(name, f"has {len(flags)} flags for {layers} layers")
    else:
        period = hyper.integer(name, period)
        flags = [bool((layer + 1) % period) for layer in range(layers)]
    return ["sliding_attention" if flag else "full_attention" for flag in flags[:layers]]

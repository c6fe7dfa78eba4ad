"""The typed errors of ktc: every failure that a user can cause, each with what is wrong, where, and what to
do.
"""

from __future__ import annotations

from pathlib import Path


class KtcError(Exception):
    """Base of all typed errors.

    Attributes:
        message: one sentence that names the file, rule, tensor or node.
        hint: what to do about it, or "" when the message says it all.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class WeightError(KtcError):
    """Base of errors about weights, configuration and tokenizers; knows the file and the tensor or key.

    Attributes:
        file: the file read, or None for weights in memory.
        tensor: the tensor, parameter or metadata key concerned, or None.
    """

    def __init__(
        self, message: str, *, file: str | Path | None = None, tensor: str | None = None, hint: str = ""
    ) -> None:
        super().__init__(f"{file}: {message}" if file is not None else message, hint=hint)
        self.file = None if file is None else Path(file)
        self.tensor = tensor


class SourceNotFoundError(WeightError):
    """The place named by `from` or `weights` does not exist, or holds no model that ktc can read."""


class HubError(WeightError):
    """A hub id that is neither in the local cache nor reachable."""


class GgufError(WeightError):
    """A GGUF file that breaks the format: truncated, overlapping, out of bounds, unknown version."""


class MetadataError(GgufError):
    """A metadata key that is missing, has the wrong type, or holds a value outside its range."""


class SafetensorsError(WeightError):
    """A safetensors file or index that breaks the format."""


class MissingTensorError(WeightError):
    """A parameter of the model for which the source has no tensor."""


class UnsupportedFormatError(WeightError):
    """A number format that ktc does not read, or that a transformation cannot handle."""


class ShapeMismatchError(WeightError):
    """A tensor whose shape is not the one the model's parameter has."""


class UnsupportedModelError(WeightError):
    """An architecture, or a setting of it, that ktc does not know how to express faithfully."""


class TokenizerError(WeightError):
    """Tokenizer metadata from which no tokenizer can be built."""


class ArtifactError(KtcError):
    """An artifact folder that is damaged, was made by another version, or does not fit this machine."""

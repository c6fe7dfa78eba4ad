"""The error of a model that cannot be captured faithfully, and the search for the model's own source line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

import torch

from ktc.errors import KtcError

_OWN = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class CaptureError(KtcError):
    """A model whose forward pass cannot be expressed as one graph.

    Attributes:
        module: dotted name of the module that was running, "" for the root.
        op: the operation that could not be captured, or "".
        source: "file:line" in the model's code, or "" when unknown.
    """

    def __init__(
        self, message: str, *, module: str = "", op: str = "", source: str = "", hint: str = ""
    ) -> None:
        where = f"module {module or '(root)'}"
        detail = "".join(
            part for part in (f", operation {op}" if op else "", f", at {source}" if source else "")
        )
        super().__init__(f"{where}{detail}: {message}", hint=hint)
        self.module = module
        self.op = op
        self.source = source


def model_line(traceback: TracebackType | None) -> str:
    """The innermost "file:line" of a traceback outside torch and this package; "" without one."""
    found = ""
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(_OWN) and not file.startswith("<"):
            found = f"{file}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


def calling_line() -> str:
    """The innermost "file:line" of the running stack outside torch and this package."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OWN) and not file.startswith("<"):
            return f"{file}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""

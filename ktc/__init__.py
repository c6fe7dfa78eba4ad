"""ktc: a compiler that places large language models on the machine you have.

`ktc.rewrite(model, rules)`, `ktc.compile(rules)` and `ktc.load(artifact)`; importing the package itself loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktc.api import compile, load, rewrite

__all__ = ["compile", "load", "rewrite"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ktc import api

        return getattr(api, name)
    raise AttributeError(f"module 'ktc' has no attribute {name!r}")

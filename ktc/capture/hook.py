"""Routes module calls and chosen functions of one thread to a tracer, for the time of one capture."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

# `nn.Module.__call__` and the globals of modelling modules are the process's: captures take turns.
LOCK = threading.RLock()

ModuleCall = Callable[[Callable[..., Any], nn.Module, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def module_calls(
    route: ModuleCall, functions: Mapping[tuple[ModuleType, str], Callable[..., Any]]
) -> Iterator[None]:
    """While open, this thread's module calls go through `route`; other threads' go on as before.

    Args:
        route: (the original `__call__`, module, args, kwargs) -> the call's result.
        functions: replacements of module globals by (module, name), seen by this thread only.
    """
    with LOCK:
        owner = threading.get_ident()
        original = nn.Module.__call__

        def routed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != owner:
                return original(module, *args, **kwargs)
            return route(original, module, args, kwargs)

        saved = {key: getattr(*key) for key in functions}
        nn.Module.__call__ = routed  # type: ignore[method-assign]
        try:
            for key, replacement in functions.items():
                setattr(*key, _for_thread(owner, replacement, saved[key]))
            yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]
            for key, function in saved.items():
                setattr(*key, function)


def _for_thread(
    owner: int, replacement: Callable[..., Any], original: Callable[..., Any]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return (replacement if threading.get_ident() == owner else original)(*args, **kwargs)

    return call

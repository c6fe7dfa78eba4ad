"""The symbolic dimensions of a capture: fake inputs of named sizes, and what tracing assumed of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from ktc.capture.errors import CaptureError

# Example sizes of dimensions: distinct primes, so that no expression of one equals another by accident.
_PRIMES = (17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79)

_COMPARISONS = (sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt, sympy.Ne)
_SLICES = ("getitem", "narrow", "slice")


@dataclass
class Dims:
    """Named symbolic dimensions over one ShapeEnv.

    Attributes:
        sizes: the symbolic integer of each name, in order of first use.
        inside: (module, operation, source line) of those of the environment's guards, by index, that a fake
            kernel made while it computed the result of a recorded operation.
        fake_mode: the mode in which a capture runs.
    """

    env: ShapeEnv = field(
        default_factory=lambda: ShapeEnv(
            allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False, duck_shape=False
        )
    )
    sizes: dict[str, torch.SymInt] = field(default_factory=dict)
    inside: dict[int, tuple[str, str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # By name as they were made: an operation that fixes a size replaces its symbol in `sizes`.
        self._symbols: dict[str, sympy.Symbol] = {}
        self.fake_mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)

    def size(self, name: str) -> torch.SymInt:
        """The symbolic integer called `name`, made on first use; at least 2 in what tracing assumes."""
        if name not in self.sizes:
            example = _PRIMES[len(self.sizes) % len(_PRIMES)]
            source = ConstantSource(name)
            symbol = self.env.create_symbol(
                example, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None
            )
            size = self.env.create_symintnode(symbol, hint=example, source=source)
            if not isinstance(size, torch.SymInt):
                raise TypeError(f"dimension {name!r} was specialised to {size}")
            self.sizes[name] = size
            self._symbols[name] = symbol
        return self.sizes[name]

    def tensor(self, shape: Sequence[int | str], dtype: torch.dtype) -> torch.Tensor:
        """A fake CPU tensor; strings in `shape` name dimensions."""
        sizes: list[Any] = [self.size(dim) if isinstance(dim, str) else dim for dim in shape]
        with torch._C.DisableTorchFunction(), self.fake_mode:
            return torch.empty(sizes, dtype=dtype, device="cpu")

    def symbols(self) -> dict[str, str]:
        """The name that each dimension's symbol has in the graph's shapes."""
        return {name: str(symbol) for name, symbol in self._symbols.items()}

    def limits(self) -> dict[str, int]:
        """Upper bounds that the model's code puts on dimensions, such as its number of positions.

        Comparisons inside a recorded operation (a choice of backend, say) are the operation's own affair: it
        makes them again when it runs. Slices are the exception, where they say how long a table is.

        Raises:
            CaptureError: the code itself depends on a size, or an operation fixed one.
        """
        names = {symbol: name for name, symbol in self._symbols.items()}
        limits: dict[str, int] = {}
        for index, guard in enumerate(self.env.guards):
            module, op, source = self.inside.get(index, ("", "", ""))
            bound = _upper_bound(guard.expr, names)
            if op and isinstance(guard.expr, _COMPARISONS) and (bound is None or op not in _SLICES):
                continue
            if bound is None:
                readable = guard.expr.subs({symbol: sympy.Symbol(name) for symbol, name in names.items()})
                raise CaptureError(
                    f"the code depends on an input size: it was traced under the assumption {readable}",
                    module=module,
                    op=op,
                    source=source or str(getattr(guard, "sloc", "") or "").split("\n")[0],
                    hint="make that dimension fixed, or keep the module out of the captured part",
                )
            name, value = bound
            limits[name] = min(value, limits.get(name, value))
        return limits


def _upper_bound(expression: Any, names: Mapping[Any, str]) -> tuple[str, int] | None:
    """(dimension, largest allowed size) of a guard like `size <= 512`, else None."""
    if not isinstance(expression, (sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt)):
        return None
    small, large = expression.lhs, expression.rhs
    if isinstance(expression, (sympy.Ge, sympy.Gt)):
        small, large = large, small
    strict = isinstance(expression, (sympy.Lt, sympy.Gt))
    if small in names and large.is_Integer:
        return names[small], int(large) - int(strict)
    return None

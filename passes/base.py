"""What a pass is: a frozen dataclass whose fields are its options, called with the graph and the context."""

from __future__ import annotations

from typing import Protocol

import torch.fx as fx
from ktc.passes.context import Context


class Pass(Protocol):
    """Rewrites or annotates a graph. `name` is what dumps and events show."""

    @property
    def name(self) -> str: ...

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """Returns the graph to go on with, the same object or a new one.

        Raises:
            KtError: with every diagnostic that the pass found.
        """
        ...

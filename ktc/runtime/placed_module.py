"""A placed module that is no language model: called as the original, with the original's results."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ktc import _cpu
from ktc.errors import KtcError
from ktc.runtime.graph_engine import stored_weights
from ktc.runtime.load import load_weights
from ktc.runtime.placement import Placement
from ktc.runtime.program import Program
from ktc.weights.source import WeightSource


class InputMismatchError(KtcError):
    """A call with other arguments than the module was captured with."""


class PlacedModule(torch.nn.Module):
    """Runs a placement's graph.

    Args:
        placement: of kind "module".
        source: the weights.
        original: the module that was captured; its signature names the arguments.
    """

    def __init__(self, placement: Placement, source: WeightSource, original: torch.nn.Module) -> None:
        super().__init__()
        self.placement = placement
        _cpu.use_nodes(placement.nodes or 0)
        weights = load_weights(source, stored_weights(placement, source), threads=placement.threads)
        self.weight_bytes = sum(tensor.nbytes for tensor in weights.values())
        self._program = Program(
            placement.graphs["step"], {**placement.constants(), **weights}, placement.threads
        )
        self._signature = inspect.signature(original.forward)
        self.config = getattr(original, "config", None)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments that the module was captured with, at any size of the dynamic dimensions.

        Raises:
            InputMismatchError: an argument is missing, or one was not captured.
        """
        try:
            given = self._signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise InputMismatchError(str(error)) from error
        given = {**given, **given.pop("kwargs", {})}
        wanted = self.placement.inputs
        missing = [name for name in wanted if given.get(name) is None]
        extra = [
            name for name, value in given.items() if name not in wanted and isinstance(value, torch.Tensor)
        ]
        if missing or extra:
            raise InputMismatchError(
                f"the module was captured with ({', '.join(wanted)}): missing {missing}, not captured {extra}",
                hint="pass the same arguments, or give others as example to `ktc.rewrite(..., example=...)`",
            )
        out = self._program(*(given[name] for name in wanted))
        return pytree.tree_unflatten(
            list(out) if isinstance(out, (tuple, list)) else [out], self.placement.output_spec
        )

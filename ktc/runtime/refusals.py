"""Methods of transformers models that make no sense on a placed one: each says why and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from ktc.runtime.errors import UnsupportedCallError

_REFUSED = {
    "save_pretrained": "its weights are packed for kernels; keep their source, and save the artifact by "
    "`ktc compile -o DIR`",
    "push_to_hub": "its weights are packed for the kernels; upload the source of the weights instead",
    "state_dict": "its weights are packed for the kernels; open the source of the weights instead",
    "load_state_dict": "its weights are packed for the kernels; compile again with `--model WHERE`",
    "resize_token_embeddings": "the graph has one vocabulary; resize the source model and compile again",
    "gradient_checkpointing_enable": "it computes no gradients; train the source model, then compile",
    "add_adapter": "adapters are not part of the graph; merge it into the weights and compile again",
    "load_adapter": "adapters are not part of the graph; merge it into the weights and compile again",
    "set_attn_implementation": "attention is a kernel of the graph; name one with `kernel` in the rules",
    "set_experts_implementation": "experts are a kernel of the graph; name one with `kernel` in the rules",
    "compile": "it is compiled already; write rules to change the graph",
}
# What each of nn.Module's moving methods asks for, beside its arguments.
_MOVES: dict[str, tuple[torch.device | torch.dtype, ...]] = {
    "to": (),
    "cuda": (torch.device("cuda"),),
    "cpu": (torch.device("cpu"),),
    "half": (torch.float16,),
    "float": (torch.float32,),
    "bfloat16": (torch.bfloat16,),
    "double": (torch.float64,),
}


def refused_methods() -> dict[str, Callable[..., Any]]:
    """The methods by name, for a class with `device` and `dtype`."""
    refused: dict[str, Callable[..., Any]] = {name: _refusing(name, why) for name, why in _REFUSED.items()}
    return refused | {name: _moving(name, asked) for name, asked in _MOVES.items()}


def _refusing(method: str, why: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnsupportedCallError(f"a placed model has no {method}(): {why}")

    refuse.__name__ = refuse.__qualname__ = method
    refuse.__doc__ = f"Raises UnsupportedCallError: {why}."
    return refuse


def _moving(method: str, asked: tuple[torch.device | torch.dtype, ...]) -> Callable[..., Any]:
    """A method that does nothing when nothing would change: libraries move models just in case."""

    def move(self: Any, *args: Any, **kwargs: Any) -> Any:
        for target in (*asked, *args, kwargs.get("device"), kwargs.get("dtype"), kwargs.get("tensor")):
            if target is None or isinstance(target, bool):
                continue
            if _changes(target, self.device, self.dtype):
                raise UnsupportedCallError(
                    f"a placed model stays on its devices in its dtypes; {method}() cannot make it {target}",
                    hint="change `place`, `quant` or the model's dtype in the rules and compile again",
                )
        return self

    move.__name__ = move.__qualname__ = method
    move.__doc__ = "Returns the model if nothing would change, else raises UnsupportedCallError."
    return move


def _changes(target: Any, device: torch.device, dtype: torch.dtype) -> bool:
    if isinstance(target, torch.dtype):
        return target != dtype
    if isinstance(target, int):
        return device.type == "cpu" or target != (device.index or 0)
    if isinstance(target, str):
        target = torch.device(target)
    if isinstance(target, torch.device):
        return target.type != device.type or (target.index or 0) != (device.index or 0)
    return True

"""One run of the tracer over a model, and the graph module made of it; shared by both kinds of capture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from ktc.capture.captured import CacheSpec
from ktc.capture.errors import CaptureError, model_line
from ktc.capture.functions import FUNCTION_LIFTS
from ktc.capture.hook import LOCK, module_calls
from ktc.capture.latent import latent_lifts
from ktc.capture.modules import module_lifts
from ktc.capture.rotary import apply_lifts, rotary_lifts
from ktc.capture.routers import router_lifts
from ktc.capture.stamp import stampable
from ktc.capture.symbols import Dims
from ktc.capture.tracer import Tracer


def make_tracer(root: nn.Module, dims: Dims, *, stamp: bool) -> Tracer:
    """A tracer with all lifts that trials on `root` confirm."""
    holder: list[Tracer] = []
    lifts = module_lifts(root) | router_lifts(root)
    lifts |= rotary_lifts(root, lambda: holder[0]) | latent_lifts(root, lambda: holder[0])
    prefix = str(getattr(root, "base_model_prefix", ""))
    tracer = Tracer(
        root,
        dims,
        module_lifts=lifts,
        function_lifts=FUNCTION_LIFTS,
        stampable=stampable(root) if stamp else frozenset(),
        strip=prefix if hasattr(root, prefix) else "",
    )
    holder.append(tracer)
    return tracer


def trace(root: nn.Module, tracer: Tracer, forward: Callable[[], Any]) -> Any:
    """Runs `forward` under the tracer; failures of the model become CaptureErrors that name the place."""
    try:
        with LOCK, torch.no_grad(), _quiet():
            # Under the lock, since another capture may have replaced the functions that are tried here.
            functions = apply_lifts(root, lambda: tracer)
            with module_calls(tracer.call, functions), tracer.dims.fake_mode, tracer:
                return forward()
    except CaptureError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CaptureError(
            f"the forward pass failed on symbolic inputs: {type(error).__name__}: {reason}",
            module=tracer.failed_in or "",
            source=model_line(error.__traceback__),
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from logging the traceback of a failing fake kernel: the CaptureError says enough."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def graph_module(root: nn.Module, tracer: Tracer) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The graph on meta parameters, and the names that a state dict must supply.

    Non-persistent buffers and constants keep their values; every other tensor is on the meta device.
    """
    state = {name for name, _ in (*root.named_parameters(remove_duplicate=False), *_persistent_buffers(root))}
    tensors: dict[str, Any] = {}
    for node in tracer.graph.nodes:
        if node.op != "get_attr" or node.target in tensors:
            continue
        if node.target.startswith("kv."):
            fake = node.meta["val"]
            tensors[node.target] = torch.empty((0, *fake.shape[1:]), dtype=fake.dtype, device="meta")
            continue
        stored = tracer.constants.get(node.target)
        if stored is None:
            stored = _attribute(root, node.target)
        if node.target in state:
            tensors[node.target] = nn.Parameter(stored.detach().to("meta"), requires_grad=False)
        elif stored.is_meta:
            raise CaptureError(
                f"buffer {node.target} has no value: it is on the meta device and in no checkpoint",
                module=node.target.rpartition(".")[0],
                hint="build the model with ktc.capture.meta_model",
            )
        else:
            tensors[node.target] = stored.detach()
    module = fx.GraphModule(tensors, tracer.graph, class_name=f"Captured{type(root).__name__}")
    module.graph.lint()
    module.meta["dims"] = tracer.dims.symbols()
    return module, tuple(name for name in tensors if name in state)


def stamped_caches(tracer: Tracer, caches: dict[int, CacheSpec]) -> tuple[CacheSpec, ...]:
    """The caches of traced layers and of those stamped from them, by layer."""
    found = dict(caches)
    for _, _, indices in tracer.stamped:
        for old, new in indices.items():
            if old in caches:
                found[new] = replace(caches[old], layer=new, key=f"kv.{new}.key", value=f"kv.{new}.value")
    return tuple(found[layer] for layer in sorted(found))


def _persistent_buffers(root: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [
        (f"{name}.{key}" if name else key, buffer)
        for name, module in root.named_modules(remove_duplicate=False)
        for key, buffer in module._buffers.items()
        if buffer is not None and key not in module._non_persistent_buffers_set
    ]


def _attribute(root: nn.Module, target: str) -> torch.Tensor:
    owner: Any = root
    for part in target.split("."):
        owner = getattr(owner, part)
    if not isinstance(owner, torch.Tensor):
        raise CaptureError(f"{target} is no tensor", module=target.rpartition(".")[0])
    return owner

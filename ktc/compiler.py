"""The driver: a program and a model in, a placed graph out. Each stage is a pass of ktc.passes, run in order."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ktc.backends.cpu
import ktc.backends.torch  # noqa: F401  (importing a backend registers its kernels)
from ktc.capture import Captured, capture_language_model, capture_module, meta_model, module_sites
from ktc.devices import resolve
from ktc.errors import KtcError
from ktc.events import EventStream
from ktc.grammar.diagnostics import Diagnostic, Fix, KtError, Label
from ktc.grammar.rules import Rules
from ktc.passes.autoplace import Autoplace
from ktc.passes.bind import Bind
from ktc.passes.caches import Caches
from ktc.passes.check import Check
from ktc.passes.context import Context, raise_all
from ktc.passes.lower import Lower, unused_kernels
from ktc.passes.manager import Dump, PassManager, PassRecord
from ktc.passes.plan_memory import PlanMemory
from ktc.passes.quantize import Quantize
from ktc.passes.rewrite import ApplyRewrite
from ktc.passes.schedule import Schedule
from ktc.passes.specialize import Specialize
from ktc.passes.transfer import Transfer
from ktc.passes.verify import Level
from ktc.passes.wanted_rows import WantedRows
from ktc.prefill import STEP, default_chunk
from ktc.weights.source import WeightSource

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass
class Compiled:
    """What compiling gives: the placed graphs, and every decision on the way.

    Attributes:
        context: rules, sites, weight plans, memory plan, phases, events.
        records: what each pass did.
        skeleton: the model on the meta device; None for a module that is no language model.
        seconds: by stage ("capture", "passes").
    """

    context: Context
    records: list[PassRecord]
    skeleton: PreTrainedModel | None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How to compile.

    Attributes:
        planning: no weights will be loaded, and hardware may be elsewhere.
        dump: folder for what each pass changed.
        chunk: tokens of one prefill step; None for `default_chunk`.
        progress: called with the name of each stage.
    """

    planning: bool = False
    dump: Path | None = None
    chunk: int | None = None
    progress: Callable[[str], None] | None = None


def compile_language_model(
    rules: Rules, config: PreTrainedConfig, source: WeightSource | None, options: Options = Options()
) -> Compiled:
    """Compiles a causal language model.

    Args:
        rules: the program.
        config: the model's configuration.
        source: its weights; None to plan without any.
        options: see `Options`.

    Raises:
        KtError: every diagnostic of the stage that found something wrong.
        KtcError: the model cannot be captured.
    """
    _import_plugins(rules)
    devices = resolve(rules, planning=options.planning)
    _check_class(rules, config)
    start = time.perf_counter()
    _say(options, "capture")
    skeleton = meta_model(config, torch.float32)
    sites = {site.name: site for site in module_sites(skeleton)}
    captured = capture_language_model(skeleton)
    captured_at = time.perf_counter()
    shapes = _shapes(skeleton)
    binding = None if source is None else source.bind(shapes, config)
    context = Context(
        rules=rules, captured=captured, sites=sites, config=config, devices=devices,
        io_device=_io_device(devices), dtype=torch.float32, shapes=shapes, source=source,
        binding=binding, events=EventStream(), chunk=options.chunk or default_chunk(config), block_size=32,
    )  # fmt: skip
    records = run_passes(context, options)
    seconds = {"capture": captured_at - start, "passes": time.perf_counter() - captured_at}
    return Compiled(context, records, skeleton, seconds)


def compile_module(
    rules: Rules,
    module: torch.nn.Module,
    example: Mapping[str, torch.Tensor],
    source: WeightSource,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    options: Options = Options(),
) -> Compiled:
    """Compiles any module from example inputs (torch tensors by argument name); otherwise as above."""
    _import_plugins(rules)
    devices = resolve(rules, planning=options.planning)
    start = time.perf_counter()
    _say(options, "capture")
    captured = capture_module(module, example, dynamic)
    captured_at = time.perf_counter()
    config: Any = getattr(module, "config", None)
    shapes = _shapes(module)
    context = Context(
        rules=rules, captured=captured, sites={site.name: site for site in module_sites(module)}, config=config,
        devices=devices, io_device=_io_device(devices), dtype=torch.float32, shapes=shapes,
        source=source, binding=source.bind(shapes, config), events=EventStream(), chunk=options.chunk or STEP,
    )  # fmt: skip
    records = run_passes(context, options)
    seconds = {"capture": captured_at - start, "passes": time.perf_counter() - captured_at}
    return Compiled(context, records, None, seconds)


def run_passes(context: Context, options: Options) -> list[PassRecord]:
    """Every pass in the order of passes/README.md; the phases' graphs end up in `context.phases`."""
    dump = Dump(options.dump) if options.dump is not None else None
    gm = context.captured.module
    if dump is not None:
        dump.after("capture", gm)
    manager = PassManager(context, dump, options.progress)
    rewrites = [ApplyRewrite(rewrite) for rewrite in context.rules.rewrites]
    gm = manager.run(
        gm,
        [Bind(), Autoplace(), Check(), *rewrites, Caches(), WantedRows(), Quantize(), Specialize()],
        Level(),
    )
    for phase, graph in list(context.phases.items()):
        graph = manager.run(graph, [Lower(phase)], Level(lowered=True), phase)
        graph = manager.run(
            graph, [Transfer(phase), Schedule(phase)], Level(lowered=True, placed=True), phase
        )
        context.phases[phase] = graph
    raise_all(unused_kernels(context))
    manager.run(context.phases["step"], [PlanMemory()], Level(lowered=True, placed=True))
    return manager.records


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """What a file must supply: parameters, and buffers of floats such as DeepSeek-V3's correction bias."""
    state = model.state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if value.is_floating_point()}


def _check_class(rules: Rules, config: Any) -> None:
    model = rules.model
    names = list(getattr(config, "architectures", None) or [])
    if model is None or not names or model.class_name.id in names:
        return
    message = f"the file is for {model.class_name.id}, and the weights are of {names[0]}"
    fix = Fix(f"write `model {names[0]}`", model.class_name.span, names[0])
    raise KtError([Diagnostic("KT606", message, (Label(model.class_name.span),), (), (fix,))])


def _import_plugins(rules: Rules) -> None:
    """`import NAME`: Python modules that register kernels."""
    for item in rules.imports:
        try:
            importlib.import_module(item.module.id)
        except ImportError as error:
            message = f"cannot import `{item.module.id}`: {error}"
            raise KtError([Diagnostic("KT123", message, (Label(item.module.span),))]) from error


def _io_device(devices: Mapping[str, Any]) -> str:
    """Where token ids arrive and logits leave: the first CPU declared, else the first device."""
    hosts = [name for name, device in devices.items() if device.hardware == "cpu"]
    return hosts[0] if hosts else next(iter(devices))


def _say(options: Options, stage: str) -> None:
    if options.progress is not None:
        options.progress(stage)


__all__ = [
    "Captured",
    "Compiled",
    "KtcError",
    "Options",
    "compile_language_model",
    "compile_module",
    "run_passes",
]

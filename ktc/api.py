"""The Python interface: `rewrite`, `compile`, `load`. Import it as `ktc.rewrite` and so on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ktc.capture import meta_model
from ktc.compiler import Compiled, Options, compile_language_model, compile_module
from ktc.errors import ArtifactError, KtcError
from ktc.grammar.diagnostics import KtError
from ktc.grammar.loading import as_rules
from ktc.grammar.rules import Rules
from ktc.passes.emit import emit
from ktc.runtime import artifact as artifacts
from ktc.runtime.generation import generation_defaults
from ktc.runtime.graph_engine import GraphEngine
from ktc.runtime.model import placed_model
from ktc.runtime.packed import PackedWeights
from ktc.runtime.placed_module import PlacedModule
from ktc.runtime.placement import Placement
from ktc.weights.opening import open_source, read_config
from ktc.weights.source import WeightSource

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

Progress = Callable[[int, int], None]


class CompiledModel(NamedTuple):
    """What `compile` gives: every decision, and the placement that a runtime needs.

    Attributes:
        compiled: rules, sites, graphs, events, statistics of the passes.
        placement: the placed graphs with their weights, caches and devices.
    """

    compiled: Compiled
    placement: Placement

    def load(self, progress: Progress | None = None) -> PreTrainedModel:
        """The model with its weights, ready for `generate()`; its tokenizer is at `.tokenizer`.

        Raises:
            KtcError: it was compiled without weights.
        """
        return load_compiled(self.compiled, self.placement, progress)

    def save(self, folder: str | Path, *, pack: bool = False, progress: Progress | None = None) -> Path:
        """Writes the artifact that `ktc.load` and `ktc run` take.

        Args:
            folder: where; an artifact that is there is replaced.
            pack: whether it holds the weights as well, in the layouts that kernels read, so that loading needs
                nothing else and goes at the speed of the disk.
            progress: of packing, called with (bytes written, bytes in all).

        Raises:
            ArtifactError: the folder holds something else, or the disk is full.
            WeightError: a weight cannot be packed.
        """
        return artifacts.save(self.compiled, self.placement, Path(folder), pack, progress)


def rewrite(
    model: torch.nn.Module,
    rules: str | Path | Rules,
    *,
    params: Mapping[str, Any] | None = None,
    example: Mapping[str, torch.Tensor] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    dump: str | Path | None = None,
) -> torch.nn.Module:
    """Applies rules to a model in memory.

    Args:
        model: a Hugging Face causal language model, or any module that can be captured.
        rules: path of a `.kt` file, its text, or parsed rules.
        params: values for the rules' parameters.
        example: example inputs by argument name, for a module that is no language model; a Hugging Face model
            gives its own.
        dynamic: names of the example's dimensions that may change: {"input_ids": {0: "batch", 1: "tokens"}}.
        dump: folder for what each pass changed.

    Returns:
        A placed model of the same class that still answers `generate()`; or, for another module, a `PlacedModule`.

    Raises:
        KtError: with every diagnostic found in the rules.
        KtcError: the model cannot be captured.
    """
    from transformers import PreTrainedModel

    from ktc.weights.state_dict import StateDictSource

    checked = as_rules(rules, params=params)
    options = Options(dump=Path(dump) if dump is not None else None)
    source = StateDictSource(model.state_dict(), getattr(model, "config", None))
    if isinstance(model, PreTrainedModel) and model.can_generate():
        with _sources(checked):
            compiled = compile_language_model(checked, model.config, source, options)
        return _place(compiled.skeleton, emit(compiled.context), source, model.generation_config)
    if example is None and isinstance(model, PreTrainedModel):
        example = _example(model)
    if example is None:
        raise KtcError("this module needs example inputs", hint="pass example={'name': tensor}")
    with _sources(checked):
        done = compile_module(checked, model, example, source, dynamic, options)
    return PlacedModule(emit(done.context), source, model)


def compile(
    rules: str | Path | Rules,
    *,
    model: str | Path | None = None,
    params: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    weights: bool = True,
    dump: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
    pack: bool = False,
) -> CompiledModel:
    """Compiles a `.kt` program for the model it names.

    Args:
        rules: path, text or parsed rules.
        model: where the model is; overrides `from` and `weights` of the file.
        params: values for the rules' parameters.
        output: folder to write the artifact to; None writes none.
        weights: False to plan only: configuration is read, weights are neither needed nor checked.
        dump: folder for what each pass changed.
        progress: called with the name of each stage.
        pack: whether the artifact holds the weights as well; see `CompiledModel.save`.

    Raises:
        KtError: with every diagnostic found.
        KtcError: the model's files cannot be read, or the model cannot be captured.
    """
    if pack and output is None:
        raise KtcError("packed weights need a place", hint="pass output=FOLDER")
    if output is not None and not weights:
        raise KtcError("an artifact needs the weights", hint="leave out --no-weights, or use `ktc plan`")
    checked = as_rules(rules, params=params)
    options = Options(planning=not weights, dump=Path(dump) if dump else None, progress=progress)
    config, source = _open(checked, model, weights)
    with _sources(checked):
        compiled = compile_language_model(checked, config, source, options)
    placement = emit(compiled.context)
    if output is not None:
        if pack and progress is not None:
            progress("packing weights")
        artifacts.save(compiled, placement, Path(output), pack)
    return CompiledModel(compiled, placement)


def load(
    artifact: str | Path, *, model: str | Path | None = None, progress: Progress | None = None
) -> PreTrainedModel:
    """Loads an artifact with its weights, ready for `generate()`; its tokenizer is at `.tokenizer`.

    Args:
        artifact: the folder that `ktc compile -o` wrote.
        model: where the weights are now, if they moved; a packed artifact has its own.
        progress: called with (bytes loaded, bytes in all).

    Raises:
        ArtifactError: damaged, of another version, for other weights or other hardware.
    """
    import ktc.backends.cpu
    import ktc.backends.torch  # noqa: F401  (kernels register when imported)

    found = artifacts.load(Path(artifact))
    source = _weights(found, model)
    tokenizer = found.tokenizer()
    config = found.placement.config
    defaults = generation_defaults(config, tokenizer)
    skeleton = meta_model(config, torch.float32)
    placed = _place(skeleton, found.placement, source, defaults, progress, str(artifact))
    object.__setattr__(placed, "tokenizer", tokenizer)
    return placed


def _weights(found: artifacts.Artifact, model: str | Path | None) -> WeightSource | PackedWeights:
    if found.packed is not None:
        if model is not None:
            raise ArtifactError(
                f"{found.folder} holds its weights, packed",
                hint=f"leave out {model}, or compile again for it",
            )
        return found.packed
    where = model or (found.manifest.get("source") or {}).get("path")
    if where is None:
        raise ArtifactError(f"{found.folder} does not say where its weights are", hint="pass model=WHERE")
    source = open_source(where)
    artifacts.check_source(found, source)
    return source


def _example(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a tokenizer would give this model: token ids, with a mask and token types where it takes them."""
    example = dict(model.dummy_inputs)
    ids = example.get("input_ids")
    accepted = inspect.signature(model.forward).parameters
    if ids is not None and "attention_mask" in accepted:
        example.setdefault("attention_mask", torch.ones_like(ids))
    if ids is not None and "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", None):
        example.setdefault("token_type_ids", torch.zeros_like(ids))
    return example


def load_compiled(
    compiled: Compiled, placement: Placement, progress: Progress | None = None
) -> PreTrainedModel:
    """The model of a program just compiled, without an artifact in between."""
    source = compiled.context.source
    if source is None:
        raise KtcError("compiled without weights", hint="leave out --no-weights")
    tokenizer = source.tokenizer()
    defaults = generation_defaults(source.config(), tokenizer)
    placed = _place(compiled.skeleton, placement, source, defaults, progress)
    object.__setattr__(placed, "tokenizer", tokenizer)
    return placed


@contextmanager
def _sources(rules: Rules) -> Iterator[None]:
    """Gives diagnostics raised inside the texts that their spans point into."""
    try:
        yield
    except KtError as error:
        error.sources = {**rules.sources, **error.sources}
        raise


def _open(
    rules: Rules, model: str | Path | None, weights: bool
) -> tuple[PreTrainedConfig, WeightSource | None]:
    declared = rules.model
    base = Path(rules.path).parent if not rules.path.startswith("<") else Path()
    named = [text.value for text in (declared.weights, declared.source) if text] if declared else []
    where = model or (_relative(named[0], base) if named else None)
    if where is None:
        hint = 'write `model CLASS from "WHERE"` in the file, or pass --model WHERE'
        raise KtcError("no model: the file does not say where it is", hint=hint)
    if not weights:
        return read_config(where), None
    source = open_source(where)
    if model is None and declared and declared.weights and declared.source:
        return open_source(_relative(declared.source.value, base)).config(), source
    return source.config(), source


def _relative(where: str, base: Path) -> str:
    """A path in a file is relative to the file; a hub id stays as it is."""
    candidate = base / where
    return str(candidate) if candidate.exists() else where


def _place(
    skeleton: PreTrainedModel | None,
    placement: Placement,
    source: WeightSource | PackedWeights,
    defaults: GenerationConfig | None,
    progress: Progress | None = None,
    name: str = "",
) -> PreTrainedModel:
    """Loads the weights and makes `skeleton` a model that runs on them."""
    if skeleton is None:
        raise KtcError("no language model was compiled")
    engine = GraphEngine(placement, source, progress)
    return placed_model(
        skeleton, engine, generation_config=defaults, prefill_chunk=placement.chunk, name=name
    )

"""The artifact: a folder that holds a compiled model, readable by people, checked when it is loaded. No pickle.

manifest.json         versions, model class, source of the weights and its fingerprint, hash of the rules, hardware
plan.json             the placement: graphs, weights, caches, devices
graph.py              each phase as Python, to read; loading never runs it
events.jsonl          every decision of the compiler
rules/                the program as it was, its includes beside it
config.json           the model's configuration
buffers.safetensors   small constants (rotary frequencies, ...)
tokenizer/            the tokenizer with its chat template, when the source has one
weights.json          with `pack`: where each weight lies, in which version of its layout, with checksums
weights-DEVICE.bin    with `pack`: the weights of a device in the layouts that its kernels read; see `packed.py`

Without `pack` the weights stay in their source, which loading needs; with it the artifact is all there is to a model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ktc.errors import ArtifactError
from ktc.events import EventStream
from ktc.runtime.packed import PackedWeights, read_table
from ktc.runtime.packing import pack_weights
from ktc.runtime.placement import Placement
from ktc.weights.source import WeightSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ktc.compiler import Compiled

FORMAT = 2


@dataclass
class Artifact:
    """A loaded artifact: the placement, the manifest, and what decided it; `packed` if it holds the weights too."""

    folder: Path
    manifest: dict[str, Any]
    placement: Placement
    events: EventStream
    packed: PackedWeights | None = None

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer kept in the artifact, or None."""
        folder = self.folder / "tokenizer"
        if not folder.is_dir():
            return None
        from transformers import AutoTokenizer

        try:
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises plain Exception
            raise ArtifactError(f"{folder}: {error}", hint="compile again") from error
        return found


def fingerprint(source: WeightSource) -> str:
    """A hash over names, formats, shapes and offsets of every tensor: cheap, and different for different weights."""
    digest = hashlib.sha256()
    for name, header in sorted(source.headers().items()):
        digest.update(
            f"{name}|{header.format}|{tuple(header.shape)}|{header.nbytes}|{header.offset}\n".encode()
        )
    return digest.hexdigest()


def save(
    compiled: Compiled,
    placement: Placement,
    folder: Path,
    pack: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes an artifact; a folder that is an artifact already is replaced as a whole, anything else is refused.

    It is written beside its place and moved there when it is complete.

    Args:
        compiled, placement: what it holds.
        folder: where.
        pack: whether it holds the weights as well, in the layouts of their kernels.
        progress: of packing, called with (bytes written, bytes in all).

    Raises:
        ArtifactError: the folder holds something else, the graph calls what an artifact cannot hold, or the disk is
            full.
        WeightError: a weight cannot be packed.
    """
    context = compiled.context
    if placement.kind != "language_model":
        raise ArtifactError(
            "only language models can be saved; call `ktc.rewrite` on the module again instead"
        )
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_artifact(folder))):
        raise ArtifactError(f"{folder} exists and is no artifact", hint="choose another folder with -o")
    plan = placement.to_json()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if pack:
            if context.source is None:
                raise ArtifactError("compiled without weights: there is nothing to pack")
            pack_weights(context.source, placement, work, progress)
        _write(work, compiled, placement, plan, pack)
        work.chmod(0o755)  # mkdtemp makes it private; an artifact is an ordinary folder
        _replace(folder, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    context.events.emit("emit", "stat", folder=str(folder))
    return folder


def _replace(folder: Path, work: Path) -> None:
    """Moves a finished artifact to its place; what was there is gone only when the new one stands."""
    old = Path(f"{work}.old")
    if folder.exists():
        folder.rename(old)
    try:
        work.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds an artifact."""
    return (folder / "manifest.json").is_file() and (folder / "plan.json").is_file()


def load(folder: Path) -> Artifact:
    """Reads an artifact without its weights.

    Raises:
        ArtifactError: it is damaged, of another format, or holds weights in a layout of another version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoConfig

    if not is_artifact(folder):
        raise ArtifactError(f"{folder} is no artifact", hint="make one with `ktc compile FILE -o DIR`")
    manifest, plan = _json(folder / "manifest.json"), _json(folder / "plan.json")
    if manifest.get("format") != FORMAT:
        text = f"{folder} has artifact format {manifest.get('format')!r}, and this ktc reads {FORMAT}"
        raise ArtifactError(text, hint="compile again")
    for key in ("hardware", "source", "rules", "versions"):
        if not isinstance(manifest.get(key), dict):
            raise ArtifactError(f"{folder / 'manifest.json'} has no {key!r}", hint="compile again")
    _check_isa(manifest["hardware"].get("isa"), folder)
    try:
        buffers: dict[str, Any] = dict(load_file(folder / "buffers.safetensors"))
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        events = EventStream.read(folder / "events.jsonl")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: {error}", hint="compile again") from error
    placement = Placement.from_json(plan, buffers, config)
    for name, home in placement.devices.items():
        if home.startswith("cuda") and not torch.cuda.is_available():
            raise ArtifactError(
                f"{folder} places weights on {name} ({home}), which is not here", hint="compile again"
            )
    where = manifest.get("weights", "source")
    if where not in ("source", "packed"):
        raise ArtifactError(f"{folder / 'manifest.json'} has weights {where!r:.60}", hint="compile again")
    packed = read_table(folder, placement) if where == "packed" else None
    return Artifact(folder, manifest, placement, events, packed)


def check_source(artifact: Artifact, source: WeightSource) -> None:
    """Raises ArtifactError when the weights are not those the artifact was compiled for."""
    if fingerprint(source) != artifact.manifest.get("source", {}).get("fingerprint"):
        text = f"{source.path} is not what {artifact.folder} was compiled for: its tensors differ"
        raise ArtifactError(text, hint="give the original with --model, or compile again")


def _check_isa(wanted: str | None, folder: Path) -> None:
    from ktc.passes.fit import ISA_LEVELS, machine_isa

    here = machine_isa()
    if wanted in ISA_LEVELS and ISA_LEVELS.index(here) < ISA_LEVELS.index(wanted):
        raise ArtifactError(
            f"{folder} was compiled for {wanted}, and this machine offers {here}", hint="compile again"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: {error}", hint="compile again") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} is no JSON object")
    return data


def _write(work: Path, compiled: Compiled, placement: Placement, plan: dict[str, Any], packed: bool) -> None:
    from safetensors.torch import save_file

    context = compiled.context
    (work / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (work / "manifest.json").write_text(
        json.dumps(_manifest(compiled, placement, packed), indent=2), encoding="utf-8"
    )
    (work / "graph.py").write_text(readable(placement), encoding="utf-8")
    context.events.write(work / "events.jsonl")
    placement.config.save_pretrained(work)
    tensors = {name: value.cpu().contiguous() for name, value in placement.buffers.items()}
    save_file(tensors, work / "buffers.safetensors")
    rules = work / "rules"
    rules.mkdir()
    for index, (path, text) in enumerate(context.rules.sources.items()):
        name = Path(path).name if path and not path.startswith("<") else "rules.kt"
        target = rules / name
        if target.exists():
            target = rules / f"{index}-{name}"
        target.write_text(text, encoding="utf-8")
    tokenizer = None if context.source is None else context.source.tokenizer()
    if tokenizer is not None:
        tokenizer.save_pretrained(work / "tokenizer")


def _manifest(compiled: Compiled, placement: Placement, packed: bool) -> dict[str, Any]:
    from ktc.passes.fit import machine_isa

    context = compiled.context
    digest = hashlib.sha256()
    for text in context.rules.sources.values():
        digest.update(text.encode())
    source = context.source
    return {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("ktc", "torch", "transformers")},
        "model": placement.config.architectures[0] if placement.config.architectures else None,
        "rules": {"path": context.rules.path, "sha256": digest.hexdigest()},
        "params": {name: str(param.value) for name, param in context.rules.params.items()},
        "source": None if source is None else {
            "kind": source.kind, "path": str(source.path.resolve()) if source.path else None,
            "fingerprint": fingerprint(source),
        },
        "weights": "packed" if packed else "source",
        "hardware": {"isa": machine_isa(), "devices": placement.devices},
    }  # fmt: skip


def readable(placement: Placement) -> str:
    """Each phase as Python source, for people; names are those of the weights."""
    parts = [
        '"""What each phase runs, as Python to read. Loading the artifact uses plan.json, never this file."""\n'
    ]
    for name, graph in placement.graphs.items():
        code = graph.python_code("self").src.replace("def forward(", f"def {name}(")
        parts.append(code)
    return "\n\n".join(parts)

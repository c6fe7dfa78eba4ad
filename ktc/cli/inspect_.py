"""`ktc inspect`: what is in an artifact, a GGUF file or a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ktc.cli.common import Json, bar, print_json, quiet_libraries, reported
from ktc.errors import ArtifactError


def inspect_(
    where: Annotated[
        Path,
        typer.Argument(
            help="an artifact, a `.gguf` file or a folder of safetensors", metavar="ARTIFACT|GGUF"
        ),
    ],
    as_json: Json = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="list every tensor")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="compare an artifact's packed weights with their checksums")
    ] = False,
) -> None:
    """Show what an artifact or a weights file holds; without --verify reads headers only."""
    with reported(as_json):
        quiet_libraries()
        from ktc.runtime.artifact import is_artifact

        if where.is_dir() and is_artifact(where):
            _artifact(where, as_json, tensors, verify)
            return
        if verify:
            raise ArtifactError(f"{where} is no artifact", hint="--verify is for packed artifacts")
        from ktc.weights.inspect import inspect

        found = inspect(where)
        if as_json:
            print_json(found.to_json())
        else:
            _weights(found.to_json(), tensors)


def _artifact(folder: Path, as_json: bool, tensors: bool, verify: bool) -> None:
    import ktc.backends.cpu
    import ktc.backends.torch  # noqa: F401  (the graphs name their kernels)
    from ktc.passes.sizes import size_words
    from ktc.runtime import artifact as artifacts

    found = artifacts.load(folder)
    if verify:
        if found.packed is None:
            raise ArtifactError(f"{folder} holds no weights", hint="--verify is for packed artifacts")
        with bar("verifying weights") as progress:
            found.packed.verify(progress)
    weights = [
        {
            "name": weight.name,
            "format": weight.format,
            "shape": list(weight.shape),
            "device": weight.device,
            "kernel": weight.kernel,
            "bytes": weight.nbytes,
        }
        for weight in found.placement.weights
    ]
    data = {
        "manifest": found.manifest,
        "graphs": {name: len(graph.nodes) for name, graph in found.placement.graphs.items()},
        "weights": weights,
        "tokens": found.placement.tokens,
        "packed": None if found.packed is None else {"bytes": found.packed.nbytes, "verified": verify},
    }
    if as_json:
        print_json(data)
        return
    manifest = found.manifest
    print(f"artifact of {manifest['model']}, rules {manifest['rules']['path']}")
    print(f"  made with {', '.join(f'{name} {text}' for name, text in manifest['versions'].items())}")
    print(f"  weights from {manifest['source']['path']} ({manifest['source']['kind']})")
    print(f"  assumes {manifest['hardware']['isa']}, devices {manifest['hardware']['devices']}")
    for name, count in data["graphs"].items():  # type: ignore[attr-defined]
        print(f"  graph {name}: {count} nodes")
    total = sum(int(str(w["bytes"])) for w in weights)
    print(f"  {len(weights)} weights, {size_words(total)}; KV cache for {data['tokens']} tokens")
    if found.packed is not None:
        checked = ", every checksum right" if verify else ""
        print(f"  packed: {size_words(found.packed.nbytes)}, one file a device{checked}")
    if tensors:
        for weight in weights:
            layout = weight["kernel"] or "dense"
            print(f"  {weight['name']}  {weight['format']} {weight['shape']}  {weight['device']}  {layout}")


def _weights(data: dict[str, Any], tensors: bool) -> None:
    from ktc.passes.sizes import size_words

    for key in ("path", "kind", "architecture", "name"):
        print(f"{key:<14}{data[key]}")
    print(f"{'elements':<14}{data['elements']:,}")
    print(f"{'weights':<14}{size_words(data['bytes'])} in {len(data['tensors'])} tensors")
    for row in data["files"]:
        print(f"{'file':<14}{row['file']} ({size_words(row['bytes'])})")
    for row in data["formats"]:
        note = "" if row["computable"] else ", which ktc cannot compute with"
        size = f"{size_words(row['nbytes'])}, {row['bits_per_element']:.2f} bits an element"
        print(f"{'format':<14}{row['format']}: {row['tensors']} tensors, {size}{note}")
    if data["metadata"]:
        print("metadata")
    for name, value in data["metadata"].items():
        print(f"  {name}: {value}")
    if tensors:
        print("tensors")
        for row in data["tensors"]:
            print(f"  {row['name']}  {row['format']} {row['shape']}  {size_words(row['bytes'])}")

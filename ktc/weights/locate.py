"""From what a user wrote after `from` to files on this machine: paths first, the hub for plain hub ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ktc.errors import HubError, SourceNotFoundError

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}(?<![.-])")
_PATH_SUFFIXES = (".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_MAX_SPLITS = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Files found: a GGUF model (all its parts, in order) or a folder of safetensors."""

    kind: Literal["gguf", "safetensors"]
    path: Path
    files: tuple[Path, ...] = ()


def locate(where: str | Path) -> Place:
    """Finds the files of a model.

    A string is a hub id only if it has the form owner/name, no file suffix, and no folder called `owner` lies
    here: whatever looks like a path never reaches the network.

    Raises:
        SourceNotFoundError: no such file or folder, or nothing in it that ktc reads.
        HubError: the hub id cannot be resolved.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    if isinstance(where, str) and is_hub_id(where):
        return _folder(_snapshot(where))
    raise SourceNotFoundError(
        "no such file or folder",
        file=path,
        hint="name a .gguf file, a folder with config.json and safetensors, or a hub id like owner/name",
    )


def is_hub_id(where: str) -> bool:
    """Whether a string that names no existing file may be looked up as a hub id."""
    if not _HUB_ID.fullmatch(where) or where.lower().endswith(_PATH_SUFFIXES):
        return False
    return not Path(where.split("/")[0]).exists()


def _file(path: Path) -> Place:
    if path.suffix.lower() == ".gguf":
        return Place("gguf", path, _all_parts(path))
    if path.suffix == ".safetensors":
        raise SourceNotFoundError(
            "one safetensors file is not a model",
            file=path,
            hint="name the folder that also holds config.json",
        )
    raise SourceNotFoundError("neither a .gguf file nor a folder", file=path)


def _folder(folder: Path) -> Place:
    ggufs = sorted(folder.glob("*.gguf"))
    has_config = (folder / "config.json").is_file()
    has_safetensors = any(folder.glob("*.safetensors"))
    if has_config and has_safetensors:
        if ggufs:
            raise SourceNotFoundError(
                "the folder holds both safetensors and GGUF files",
                file=folder,
                hint="name the .gguf file itself",
            )
        return Place("safetensors", folder)
    if ggufs:
        return _gguf_folder(folder, ggufs)
    if has_safetensors:
        raise SourceNotFoundError("the folder has safetensors but no config.json", file=folder)
    if has_config:
        raise SourceNotFoundError(
            "the folder has a config.json but no safetensors",
            file=folder,
            hint="pickled weights (.bin, .pt) are not read: convert them to safetensors",
        )
    raise SourceNotFoundError(
        "the folder holds no model: no .gguf, no config.json with safetensors", file=folder
    )


def _gguf_folder(folder: Path, files: Sequence[Path]) -> Place:
    stems = {match["stem"] if (match := _SPLIT.fullmatch(file.name)) else file.name for file in files}
    if len(stems) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise SourceNotFoundError(
            f"the folder holds several GGUF models ({names}{', …' if len(files) > 4 else ''})",
            file=folder,
            hint="name one .gguf file; of a split model, any part",
        )
    return Place("gguf", folder, _all_parts(files[0]))


def _all_parts(path: Path) -> tuple[Path, ...]:
    """The parts of a split model in order, found from the name of any of them."""
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= _MAX_SPLITS:
        raise SourceNotFoundError(f"the name claims part {int(match['number'])} of {count}", file=path)
    parts = [path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise SourceNotFoundError(
            f"{len(missing)} of {count} parts are missing, first {missing[0]}",
            file=path,
            hint="download all parts",
        )
    return tuple(parts)


def _snapshot(hub_id: str) -> Path:
    """The local folder of a hub id: from the cache if it is there, else downloaded unless offline."""
    from huggingface_hub import constants, snapshot_download

    try:
        cached = Path(snapshot_download(hub_id, local_files_only=True, allow_patterns=_HUB_PATTERNS))
    except (OSError, ValueError):
        cached = None
    if cached is not None and (cached / "config.json").is_file() and any(cached.glob("*.safetensors")):
        return cached
    if constants.HF_HUB_OFFLINE:
        raise HubError(
            f"hub id {hub_id!r} is not in the local cache, and HF_HUB_OFFLINE is set",
            hint=f"run `hf download {hub_id}` while online, or name a local folder or .gguf file",
        )
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_PATTERNS))
    except Exception as error:  # the hub client passes on errors of its HTTP library, which changes
        raise HubError(
            f"hub id {hub_id!r} is not in the local cache and could not be downloaded "
            f"({type(error).__name__})",
            hint="if a local file was meant, check its path; else check the id and the network",
        ) from error

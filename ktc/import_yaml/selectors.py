"""Finds short selectors for sets of modules: ranges of layers, globs, classes; the matcher checks each one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from ktc.grammar.parser import parse
from ktc.grammar.selectors import compile_selector
from ktc.grammar.sites import Site
from ktc.grammar.tree import Let


class Coverer:
    """Writes selectors over the modules of one model.

    Args:
        sites: every module of it.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = sites
        self._names = {site.name for site in sites}
        self._layers = sorted({site.layer for site in sites if site.layer is not None})
        self._linears = {site.name for site in sites if "Linear" in site.classes}
        found = [_split(site) for site in sites]
        self._prefix = next((prefix for prefix, rest in found if rest is not None), "")
        self._paths: dict[str, set[int]] = {}  # path inside a layer: the layers that have it
        for site, (_, rest) in zip(sites, found, strict=True):
            if rest is not None and site.layer is not None:
                self._paths.setdefault(rest, set()).add(site.layer)

    def layers(self, numbers: Collection[int]) -> list[str]:
        """Names of the decoder layers of these numbers themselves."""
        return [site.name for site in self._sites if site.layer in numbers and self._rest(site.name) == ""]

    def matched(self, text: str) -> set[str]:
        """Names of the modules that a selector names."""
        file, problems = parse(f"let set = match {text}\n", "<selector>")
        item = file.items[0] if file.items and not problems else None
        if not isinstance(item, Let) or item.selector is None:
            raise ValueError(f"no selector: {text}")
        matcher = compile_selector(item.selector, layers=len(self._layers) or None)
        return {site.name for site in matcher.select(self._sites)}

    def cover(self, needed: Collection[str], allowed: Collection[str] | None = None) -> str:
        """A selector that names all of `needed` and nothing outside `allowed` (which defaults to `needed`)."""
        wanted = set(needed)
        free = wanted if allowed is None else wanted | set(allowed)
        terms: list[str] = []
        if wanted == self._linears and len(wanted) > 1:
            return "**: Linear"
        outside = [name for name in self._order(wanted) if self._rest(name) is None]
        groups: dict[tuple[str, ...], list[str]] = {}
        for path, layers in self._by_path(wanted).items():
            groups.setdefault(self._ranges(path, layers, free), []).append(path)
        for ranges, paths in groups.items():
            for piece in ranges:
                terms += self._pieces(piece, paths, free)
        return " or ".join([*terms, *outside])

    def _by_path(self, names: set[str]) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for site in self._sites:
            rest = self._rest(site.name)
            if site.name in names and rest is not None and site.layer is not None:
                found.setdefault(rest, set()).add(site.layer)
        return found

    def _order(self, names: set[str]) -> list[str]:
        return [site.name for site in self._sites if site.name in names]

    def _rest(self, name: str) -> str | None:
        start = f"{self._prefix}."
        if not self._prefix or not name.startswith(start):
            return None
        number, _, rest = name[len(start) :].partition(".")
        return rest if number.isdecimal() else None

    def _name(self, layer: int, path: str) -> str:
        return f"{self._prefix}.{layer}.{path}" if path else f"{self._prefix}.{layer}"

    def _ranges(self, path: str, wanted: set[int], free: set[str]) -> tuple[str, ...]:
        """Index texts that name the wanted layers, and others only where the path is free or does not exist."""
        open_ = [
            layer not in self._paths[path] or layer in wanted or self._name(layer, path) in free
            for layer in self._layers
        ]
        runs: list[tuple[int, int]] = []
        start = None
        for index, allowed in enumerate([*open_, False]):
            if allowed and start is None:
                start = index
            elif not allowed and start is not None:
                run = self._layers[start:index]
                if any(layer in wanted for layer in run):
                    runs.append((run[0], run[-1]))
                start = None
        return tuple(self._index(first, last, wanted) for first, last in runs)

    def _index(self, first: int, last: int, wanted: set[int]) -> str:
        low, high = self._layers[0], self._layers[-1]
        if first == low and last == high:
            return "*"
        inside = [layer for layer in wanted if first <= layer <= last]
        if last == high:
            return f"{min(inside)}.."
        if first == low:
            return f"..{max(inside)}"
        a, b = min(inside), max(inside)
        return str(a) if a == b else f"{a}..{b}"

    def _pieces(self, index: str, paths: list[str], free: set[str]) -> list[str]:
        """Selectors of some paths in one range of layers."""
        base = f"{self._prefix}[{index}]"
        if "" in paths:
            inside = [path for path in paths if path]
            return [base, *(self._pieces(index, inside, free) if inside else [])]
        needed = set().union(*(self.matched(f"{base}.{path}") for path in paths))
        linears = f"{base}.**: Linear"
        if len(paths) > 2 and self._fits(linears, needed, needed | free):
            return [linears]
        if len(paths) > 2:
            most = self._all_but(linears, needed, free, base)
            if most is not None:
                return [most]
        return self._globbed(base, paths, free)

    def _all_but(self, linears: str, needed: set[str], free: set[str], base: str) -> str | None:
        """`linears and not ...`, where the Linears left out are few."""
        named = self.matched(linears)
        extra = named - needed - free
        paths = list(dict.fromkeys(rest for name in sorted(extra) if (rest := self._rest(name)) is not None))
        if not needed <= named or not 0 < len(paths) <= 2:
            return None
        text = f"({linears} and not {' and not '.join(f'{base}.{path}' for path in paths)})"
        return text if self._fits(text, needed, needed | free) else None

    def _globbed(self, base: str, paths: list[str], free: set[str]) -> list[str]:
        """Paths one by one, those of one parent under a glob where that names nothing else."""
        groups: dict[str, list[str]] = {}
        for path in paths:
            groups.setdefault(path.rpartition(".")[0], []).append(path)
        terms: list[str] = []
        for parent, inside in groups.items():
            texts = [f"{base}.{path}" for path in inside]
            needed = set().union(*(self.matched(text) for text in texts))
            head = f"{base}.{parent}." if parent else f"{base}."
            short = next((g for g in _globs(inside) if self._fits(head + g, needed, needed | free)), None)
            terms += [head + short] if short is not None else texts
        return terms

    def _fits(self, text: str, needed: set[str], allowed: set[str]) -> bool:
        named = self.matched(text)
        return needed <= named <= allowed


def _globs(paths: Iterable[str]) -> list[str]:
    """Globs that name the last parts of several paths: `*_proj`, `*`."""
    last = [path.rpartition(".")[2] for path in paths]
    if len(last) < 2:
        return []
    tails = {re.sub(r"^[^_]*", "*", name) for name in last}
    return ([tails.pop()] if len(tails) == 1 else []) + ["*"]


def _split(site: Site) -> tuple[str, str | None]:
    """Of a module inside a decoder layer, the path of the list of layers and the path inside the layer."""
    if site.layer is None:
        return "", None
    found = re.match(rf"(.*?)\.{site.layer}(?:\.(.*))?$", site.name)
    return ("", None) if found is None else (found[1], found[2] or "")

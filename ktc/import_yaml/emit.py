"""Writes a placement as a `.kt` program: few rules, each with a comment that names the YAML lines it came from."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ktc.grammar.format import format_text
from ktc.grammar.loading import check, std_files
from ktc.grammar.sites import Site
from ktc.import_yaml.devices import DEFAULT, Device
from ktc.import_yaml.placement import Choice, Placement, is_attention
from ktc.import_yaml.selectors import Coverer
from ktc.import_yaml.unconverted import Unconverted

WIDTH = 100  # columns of a comment
CONTEXT = 4096  # default tokens of KV cache
MOST_LINES = 8  # YAML lines that a comment names one by one
_MLA = "std/mla.kt"
LARGEST_CHUNK = 512  # tokens of one prefill step


@dataclass(frozen=True)
class Program:
    """What to write.

    Attributes:
        model_class, model_type: of the configuration.
        yaml_name: what comments call the rule file.
        sites: every module of the model.
        placement: what each gets.
        dense: the float format that KTransformers computes with: the model's own.
        memory: budgets to write, by "cpu" and "cuda"; without one, what the hardware reports counts.
        unconverted: what the rules ask for in vain.
        mla: whether the rules replace attention by its latent form.
    """

    model_class: str
    model_type: str
    yaml_name: str
    sites: Sequence[Site]
    placement: Placement
    dense: str
    unconverted: Sequence[Unconverted] = ()
    mla: bool = False
    memory: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Rule:
    name: str
    selector: str
    actions: tuple[str, ...]
    lines: tuple[int, ...] = ()
    why: str = ""
    expect: str | None = None

    def text(self) -> str:
        comment = _sentence(_lines_words(self.lines), self.why)
        clauses = [f"match {self.selector}", *self.actions]
        if self.expect is not None:
            clauses.append(f"expect {self.expect}")
        flat = f"rule {self.name} {{ {' '.join(clauses)} }}"
        if len(flat) > WIDTH or len(clauses) > 3:
            flat = f"rule {self.name} {{\n" + "\n".join(clauses) + "\n}"
        return _comment(comment) + flat


def emit(program: Program) -> str:
    """The text of the program, formatted."""
    return format_text(_Emitter(program).text())


def _comment(text: str, indent: str = "") -> str:
    wrapped = textwrap.wrap(
        text, WIDTH - 2, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "".join(f"# {line}\n" for line in wrapped)


def _sentence(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _lines_words(lines: Sequence[int]) -> str:
    if not lines:
        return ""
    if len(lines) > MOST_LINES:
        return f"Lines {lines[0]} to {lines[-1]} ({len(lines)} rules)"
    return f"Line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}"


class _Emitter:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._choices = program.placement.choices
        self._homes = program.placement.homes
        self._cover = Coverer(program.sites)
        self._gpus = sorted(
            {d for c in self._choices.values() for d in (c.device, c.bulk) if d is not None and not d.is_cpu}
            | {d for d in self._homes.values() if not d.is_cpu}
        )
        self._base = self._homes[min(self._homes)] if self._homes else self._most_common()
        self._wholes: dict[Device, set[str]] = {}
        self._mixed = self._find_mixed()
        self._grouped = len(self._gpus) > 1 and [d.index for d in self._gpus] == list(range(len(self._gpus)))

    def text(self) -> str:
        program = self._program
        head = (
            f"Converted from {program.yaml_name} by `ktc import-yaml`. Comments name the lines of that file."
        )
        text = _comment(head)
        if program.unconverted:
            text += "#\n# Not converted:\n"
            for item in program.unconverted:
                where = _lines_words(sorted({span.line for span in item.spans}))
                text += _comment(f"- {where}: {item.what}; {item.instead}", "  ")
        text += f"model {program.model_class}\n\n"
        text += "".join(f'include "{name}"\n' for name in self._includes()) + "\n"
        text += f'param context: int = {CONTEXT} "tokens of KV cache to reserve"\n\n'
        rules = self._rules()
        text += "".join(f"device {line}\n" for line in self._devices()) + "\n"
        bulk = [choice for choice in self._choices.values() if choice.bulk is not None]
        if bulk and program.placement.threshold is not None:
            text += self._phase(program.placement.threshold)
        return text + "\n\n".join(rule.text() for rule in rules) + "\n"

    def _includes(self) -> list[str]:
        kind = self._program.model_type
        shipped = std_files()
        names = (kind, kind.removesuffix("_text"), re.sub(r"_v\d+$", "", kind))
        family = [f"std/{name}.kt" for name in names]
        found = [next((name for name in family if name in shipped), "std/fusions.kt")]
        if self._program.mla and _MLA in shipped and not _includes(found[0], _MLA):
            found.append(_MLA)
        return found

    # --- devices -----------------------------------------------------------------------------------
    def _devices(self) -> list[str]:
        if self._grouped:
            found = [self._budget(f"gpus = cuda:0..{self._gpus[-1].index}", "cuda")]
        else:
            found = [self._budget(f"{self._name(gpu)} = {gpu}", "cuda") for gpu in self._gpus]
        uses_cpu = any(d.is_cpu for c in self._choices.values() for d in (c.device, c.bulk) if d is not None)
        return [*found, self._budget("host = cpu", "cpu")] if uses_cpu else found

    def _budget(self, text: str, hardware: str) -> str:
        memory = self._program.memory.get(hardware)
        return text if memory is None else f"{text} (memory = {memory})"

    def _name(self, device: Device) -> str:
        if device.is_cpu:
            return "host"
        if self._grouped:
            return f"gpus[{device.index}]"
        return "gpu" if len(self._gpus) == 1 else f"gpu{device.index}"

    def _word(self, device: Device) -> str:
        return self._name(device).replace("s[", "").replace("]", "")

    def _most_common(self) -> Device:
        votes = Counter(choice.device for choice in self._choices.values())
        return votes.most_common(1)[0][0] if votes else DEFAULT

    # --- rules -------------------------------------------------------------------------------------
    def _rules(self) -> list[_Rule]:
        kernels = self._kernels()
        placed = {
            name
            for rule, names in kernels
            if any(a.startswith("place ") for a in rule.actions)
            for name in names
        }
        found = [self._everything()]
        formula = self._formula()
        if formula is not None:
            found.append(formula)
        found += self._by_device(formula is None, placed)
        found += self._exceptions(placed)
        found += [rule for rule, _ in kernels]
        found += self._bulk()
        found += self._absorbed()
        return [*found, *self._cache()]

    def _everything(self) -> _Rule:
        inside = [c for c in self._choices.values() if c.device == self._base]
        falls = [
            name for name in self._program.placement.unmatched if self._choices[name].device == self._base
        ]
        why = f"{len(falls)} modules that no rule matches" if falls else ""
        lines = _rule_lines(inside)
        actions = (f"place {self._name(self._base)}",)
        return _Rule("everything", "**", actions, lines, why)

    def _formula(self) -> _Rule | None:
        """Layers dealt out to a group of GPUs in equal blocks: one rule with an index instead of one a GPU."""
        layers = sorted(self._homes)
        count = len({self._homes[layer] for layer in layers})
        if not self._grouped or count < 3 or count != len(self._gpus):
            return None
        index = self._index(layers, count)
        if index is None:
            return None
        inside = [c for c in self._choices.values() if c.site.layer is not None and not c.device.is_cpu]
        selector = self._cover.cover(self._cover.layers(self._homes))
        return _Rule("layers", selector, (f"place gpus[{index}]",), _rule_lines(inside))

    def _index(self, layers: Sequence[int], count: int) -> str | None:
        """The number of a layer's GPU as an expression, where one says it."""
        size = next(
            (i for i, n in enumerate(layers) if self._homes[n] != self._homes[layers[0]]), len(layers)
        )
        total, last = len(layers), count - 1
        numbers = {
            f"layer // {size}": [n // size for n in layers],
            f"min(layer // {size}, {last})": [min(n // size, last) for n in layers],
            f"layer * {count} // layers": [n * count // total for n in layers],
        }
        wanted = [self._homes[n].index for n in layers]
        return next((text for text, found in numbers.items() if found == wanted), None)

    def _by_device(self, layers: bool, placed: set[str]) -> list[_Rule]:
        """For each other device, the layers and the modules outside of layers that live on it."""
        outside = {
            name: choice
            for name, choice in self._choices.items()
            if choice.site.layer is None and choice.device != self._base and name not in placed
        }
        devices = {c.device for c in outside.values()}
        if layers:
            devices |= {device for device in self._homes.values() if device != self._base}
        found = []
        for device in sorted(devices):
            whole = self._cover.layers({n for n, home in self._homes.items() if layers and home == device})
            single = [name for name, choice in outside.items() if choice.device == device]
            name = f"on_{self._word(device)}" if whole or len(single) > 1 else single[0].rpartition(".")[2]
            inside = [
                c for c in self._choices.values()
                if c.device == device and (c.site.name in single or (whole and self._homes.get(_layer(c)) == device))
            ]  # fmt: skip
            selector = self._cover.cover([*whole, *single])
            expect = "1" if not whole and len(single) == 1 else None
            found.append(
                _Rule(name, selector, (f"place {self._name(device)}",), _rule_lines(inside), expect=expect)
            )
        return found

    def _find_mixed(self) -> dict[str, Device]:
        """Attentions that live elsewhere than their layer, and not with everything inside them."""
        return {
            name: choice.device
            for name, choice in self._choices.items()
            if choice.device != self._homes.get(_layer(choice), choice.device)
            and is_attention(choice.site)
            and name not in self._whole(choice.device)
        }

    def _above(self, choice: Choice) -> Device:
        """The device that a module has by the rules for what it lies in."""
        inside = self._mixed.get(choice.site.name.rpartition(".")[0])
        return self._homes.get(_layer(choice), self._base) if inside is None else inside

    def _exceptions(self, placed: set[str]) -> list[_Rule]:
        """Modules that live elsewhere than what they lie in, as the largest modules that are wholly there."""
        left = [
            choice
            for name, choice in self._choices.items()
            if choice.site.layer is not None and choice.device != self._above(choice)
            and name not in placed and name not in self._mixed
        ]  # fmt: skip
        mixed = [self._choices[name] for name in self._mixed]
        return self._elsewhere(mixed, "attention_on_") + self._elsewhere(left, "more_on_")

    def _elsewhere(self, choices: Iterable[Choice], prefix: str) -> list[_Rule]:
        by_device: dict[Device, list[Choice]] = {}
        for choice in choices:
            by_device.setdefault(choice.device, []).append(choice)
        found = []
        for device, group in sorted(by_device.items()):
            whole = self._whole(device)
            nodes = {self._lift(choice.site.name, whole) for choice in group}
            nodes = {n for n in nodes if not any(n.startswith(f"{other}.") for other in nodes)}
            selector = self._cover.cover(nodes, whole)
            count = str(len(self._cover.matched(selector)))
            actions = (f"place {self._name(device)}",)
            found.append(
                _Rule(f"{prefix}{self._word(device)}", selector, actions, _rule_lines(group), expect=count)
            )
        return found

    def _whole(self, device: Device) -> set[str]:
        """Modules inside layers of which everything that matters lives on a device."""
        if device in self._wholes:
            return self._wholes[device]
        good: dict[str, bool] = {}
        for name, choice in self._choices.items():
            while name:
                good[name] = good.get(name, True) and choice.device == device
                name = name.rpartition(".")[0]
        layers = set(self._cover.layers(self._homes))
        inside = {site.name for site in self._program.sites if site.layer is not None} - layers
        found = self._wholes[device] = {name for name in inside if good.get(name, True)}
        return found

    def _lift(self, name: str, whole: set[str]) -> str:
        while (parent := name.rpartition(".")[0]) in whole:
            name = parent
        return name

    def _kernels(self) -> list[tuple[_Rule, list[str]]]:
        """Modules whose ops have a kernel of ktc, with their device where it is not that of their layer."""
        groups: dict[tuple[str, Device], list[Choice]] = {}
        for choice in self._choices.values():
            if choice.kernel == "cpu.linear" and "Linear" not in choice.site.classes:
                continue  # a router: its product takes what `auto` picks
            if choice.kernel is not None:
                groups.setdefault((choice.kernel, choice.device), []).append(choice)
        found = []
        for (kernel, device), choices in groups.items():
            names = [choice.site.name for choice in choices]
            moved = any(c.device != self._above(c) for c in choices)
            actions = (*((f"place {self._name(device)}",) if moved else ()), f"kernel {kernel}")
            selector = self._cover.cover(names)
            title = "routed_experts" if kernel == "cpu.experts" else kernel.replace(".", "_")
            found.append(
                (_Rule(title, selector, actions, _rule_lines(choices), expect=str(len(names))), names)
            )
        return found

    def _bulk(self) -> list[_Rule]:
        groups: dict[Device, list[Choice]] = {}
        for choice in self._choices.values():
            if choice.bulk is not None and choice.site.layer is not None:
                groups.setdefault(choice.bulk, []).append(choice)
        found = []
        for device, choices in sorted(groups.items()):
            selector = self._cover.cover([choice.site.name for choice in choices])
            action = f"on layerwise {{ place {self._name(device)} kernel auto }}"
            found.append(
                _Rule(f"long_prompts_{self._word(device)}", selector, (action,), _rule_lines(choices))
            )
        return found

    def _phase(self, threshold: int) -> str:
        least = min(threshold + 1, LARGEST_CHUNK)
        why = f"KTransformers: prompts over {threshold:,} tokens; ktc prefills in chunks of {LARGEST_CHUNK}"
        return _comment(why) + f"phase layerwise = tokens >= {least}\n\n"

    def _absorbed(self) -> list[_Rule]:
        """KTransformers keeps the matrix that latent attention absorbs as floats."""
        names = [site.name for site in self._program.sites if site.name.endswith(".self_attn.kv_b_proj")]
        if not names or not any(_includes(library, _MLA) for library in self._includes()):
            return []
        why = "Latent attention absorbs this matrix, dequantised"
        action = f"quant {self._program.dense}"
        return [_Rule("absorbed", self._cover.cover(names), (action,), (), why, "layers")]

    def _cache(self) -> list[_Rule]:
        names = [site.name for site in self._program.sites if site.layer is not None and is_attention(site)]
        if not names:
            return []
        action = f"cache paged(dtype = {self._program.dense}, tokens = context)"
        expect = "layers" if len(names) == len(self._homes) else str(len(names))
        return [_Rule("attention_cache", self._cover.cover(names), (action,), expect=expect)]


def _includes(library: str, wanted: str) -> bool:
    """Whether a library is another, or includes it."""
    return wanted in check(f'include "{library}"\n', text=True).sources


def _layer(choice: Choice) -> int:
    return -1 if choice.site.layer is None else choice.site.layer


def _rule_lines(choices: Iterable[Choice]) -> tuple[int, ...]:
    return tuple(sorted({c.decision.rule.line for c in choices if c.decision is not None}))

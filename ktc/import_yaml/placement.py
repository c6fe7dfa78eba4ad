"""From what each rule says to what each of today's modules gets: a device for each phase, and an op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ktc.grammar.sites import Site
from ktc.import_yaml.devices import CPU, DEFAULT, Device, parse_device, substitute
from ktc.import_yaml.old_model import OldModel, OldModule
from ktc.import_yaml.reading import RuleDef
from ktc.import_yaml.replay import Replay
from ktc.import_yaml.tables import DEFAULT_THRESHOLD, FORMER_OPS, OPS, Op, Operator, operator


@dataclass(frozen=True, slots=True)
class Decision:
    """What one rule says, its class's defaults filled in.

    Attributes:
        rule: the rule.
        operator: its replacement class; None for "default" and for classes that KTransformers does not have.
        generate, prefill: the devices as written, None for one that is missing or no device.
        generate_op, prefill_op: names of ops as written or by default, None where there are none.
    """

    rule: RuleDef
    operator: Operator | None
    generate: Device | None
    prefill: Device | None
    generate_op: str | None
    prefill_op: str | None

    @property
    def op(self) -> Op | None:
        """The op that runs when the model generates."""
        return find_op(self.generate_op)

    @property
    def device(self) -> Device:
        """Where it runs when the model generates: ops of the CPU run there whatever the rule says."""
        if self.op is not None and self.op.hardware == "cpu":
            return CPU
        return DEFAULT if self.generate is None else self.generate


def find_op(name: str | None) -> Op | None:
    """An op by its name of today or of the tutorials."""
    return None if name is None else OPS.get(FORMER_OPS.get(name, name))


def decide(rule: RuleDef) -> Decision:
    """Fills in what a rule leaves to its class."""
    known = operator(rule.replace_class)
    default = known or Operator("default")
    generate = rule.kwarg(
        "generate_device", None if rule.replace_class == "default" else default.generate_device
    )
    prefill = rule.kwarg("prefill_device", generate if known is None else default.prefill_device)
    ops = [rule.kwarg("generate_op", default.generate_op), rule.kwarg("prefill_op", default.prefill_op)]
    names = [op if isinstance(op, str) else None for op in ops]
    return Decision(rule, known, parse_device(generate), parse_device(prefill), names[0], names[1])


@dataclass(frozen=True, slots=True)
class Choice:
    """What one of today's modules gets.

    Attributes:
        site: the module.
        device: where its weights live and where it runs when generating.
        kernel: the ktc kernel that does what its op did, None for `kernel auto`.
        bulk: another device for long prompts, where the rules move it there.
        decision: the rule that says so; None where none does.
    """

    site: Site
    device: Device
    kernel: str | None = None
    bulk: Device | None = None
    decision: Decision | None = None


@dataclass(frozen=True)
class Placement:
    """All of it.

    Attributes:
        choices: by name, for every module with parameters of its own and every attention.
        homes: by layer, the device of its residual stream: that of its first norm.
        unmatched: modules with parameters that no rule fits: they go to the default device.
        unvisited: modules with parameters inside one with `recursive: False`: they go to "cuda".
        threshold: prompt tokens above which layers switch to their prefill ops; None when they never do.
        stream: by layer, the device that the model class moves the hidden state to.
        split: modules of experts of which single experts went to different devices.
        decisions: of every rule, by number.
    """

    choices: Mapping[str, Choice]
    homes: Mapping[int, Device]
    unmatched: tuple[str, ...] = ()
    unvisited: tuple[str, ...] = ()
    threshold: int | None = None
    stream: Mapping[int, Device] = field(default_factory=dict)
    split: tuple[str, ...] = ()
    decisions: Mapping[int, Decision] = field(default_factory=dict)


def place(model: OldModel, sites: Sequence[Site], rules: Sequence[RuleDef], outcome: Replay) -> Placement:
    """Says what each module of `sites` gets from the replayed rules."""
    return _Placer(model, sites, rules, outcome).run()


class _Placer:
    def __init__(
        self, model: OldModel, sites: Sequence[Site], rules: Sequence[RuleDef], outcome: Replay
    ) -> None:
        self._sites = {site.name: site for site in sites}
        self._outcome = outcome
        self._decisions = {rule.number: decide(rule) for rule in rules}
        self._holders: dict[str, list[OldModule]] = {}
        self._model = model
        self._split: list[str] = []
        self._unmatched: list[str] = []
        self._unvisited: list[str] = []
        top = [module for module in model.walk() if module.site == "model"]
        self._model_rule = self._decision(top[0]) if top else None
        self._threshold = self._find_threshold()

    def run(self) -> Placement:
        choices: dict[str, Choice] = {}
        for module in self._model.walk():
            site = None if module.site is None else self._sites.get(module.site)
            if site is None or site.name in choices:
                continue
            if self._model.is_experts(module):
                choices[site.name] = self._experts(module, site)
            elif module.holds:
                choices[site.name] = self._choice(module, site)
        homes = _homes(choices.values())
        for module in self._model.walk():
            site = None if module.site is None else self._sites.get(module.site)
            if (
                site is not None
                and site.layer is not None
                and is_attention(site)
                and site.name not in choices
            ):
                choices[site.name] = self._attention(module, site, homes)
        layers = sorted(homes)
        return Placement(
            choices, homes, tuple(self._unmatched), tuple(self._unvisited), self._threshold,
            self._stream(layers), tuple(self._split), self._decisions,
        )  # fmt: skip

    def _decision(self, module: OldModule) -> Decision | None:
        rule = self._outcome.decided.get(module.name)
        return None if rule is None else self._decisions[rule.number]

    def _choice(self, module: OldModule, site: Site) -> Choice:
        decision = self._decision(module)
        if decision is None:
            visited = module.name in self._outcome.decided
            (self._unmatched if visited else self._unvisited).append(site.name)
            return Choice(site, DEFAULT)
        return self._from(decision, site)

    def _from(self, decision: Decision, site: Site) -> Choice:
        op = decision.op
        kernel = op.kernel if op is not None else None
        device = substitute(decision.device)
        bulk = None
        if self._threshold is not None and decision.prefill is not None:
            bulk = substitute(decision.prefill)
        return Choice(site, device, kernel, None if bulk == device else bulk, decision)

    def _experts(self, module: OldModule, site: Site) -> Choice:
        """A whole list of experts: by the rule of the list if that replaces it, else by those of its Linears."""
        decision = self._decision(module)
        if decision is not None and decision.operator is not None and decision.operator.kind == "experts":
            return self._from(decision, site)
        if module.name not in self._outcome.decided or (decision is not None and not decision.rule.recursive):
            self._unvisited.append(site.name)
            return Choice(site, DEFAULT)
        inner = [
            part
            for expert in self._model.children(module)
            for part in self._model.children(expert)
            if part.holds
        ]
        votes = Counter(self._device_of(part) for part in inner)
        if len(votes) > 1:
            self._split.append(site.name)
        found = next((d for part in inner if (d := self._decision(part)) is not None), None)
        if found is None:
            self._unmatched.append(site.name)
        device = votes.most_common(1)[0][0]
        return Choice(site, device, None, None, found)

    def _device_of(self, module: OldModule) -> Device:
        decision = self._decision(module)
        return DEFAULT if decision is None else substitute(decision.device)

    def _attention(self, module: OldModule, site: Site, homes: Mapping[int, Device]) -> Choice:
        decision = self._decision(module)
        home = homes.get(-1 if site.layer is None else site.layer, DEFAULT)
        if decision is None or decision.generate is None:
            return Choice(site, home)
        return self._from(decision, site)

    def _find_threshold(self) -> int | None:
        found = self._model_rule
        if found is None or found.operator is None or found.operator.kind != "model":
            return None
        value = found.rule.kwarg("per_layer_prefill_intput_threshold", DEFAULT_THRESHOLD)
        usable = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return value if usable and isinstance(value, int) else None

    def _stream(self, layers: Iterable[int]) -> dict[int, Device]:
        found = self._model_rule
        moves: object = {}
        if found is not None and found.operator is not None and found.operator.kind == "model":
            moves = found.rule.kwarg("transfer_map") or {}
        here = DEFAULT
        stream = {}
        for layer in layers:
            there = parse_device(moves.get(layer)) if isinstance(moves, dict) else None
            here = here if there is None else substitute(there)
            stream[layer] = here
        return stream


def is_attention(site: Site) -> bool:
    """Whether a module is a layer's attention: the one that owns a cache."""
    return bool(site.classes) and site.classes[0].endswith("Attention")


def _homes(choices: Iterable[Choice]) -> dict[int, Device]:
    """By layer, the device of the first norm directly inside it, else of most of what it holds."""
    by_layer: dict[int, list[Choice]] = {}
    for choice in choices:
        if choice.site.layer is not None:
            by_layer.setdefault(choice.site.layer, []).append(choice)
    homes = {}
    for layer, inside in by_layer.items():
        norms = [c for c in inside if c.site.name.rpartition(".")[0].endswith(f".{layer}")]
        votes = Counter(choice.device for choice in inside)
        homes[layer] = norms[0].device if norms else votes.most_common(1)[0][0]
    return homes

"""The module tree that KTransformers' rules were written for, made from the one that transformers builds today.

KTransformers carries modelling files of its own, older than today's transformers: every expert was a module, rotary
embeddings sat in each attention, Mixtral called its block `block_sparse_moe`, routers were plain Linears or `MoEGate`.
`FAMILIES` is the one table of what is called differently; what it does not mention kept its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

_MODULE = "torch.nn.Module"
_GATED = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Family:
    """How KTransformers' modelling file of an architecture differs from today's.

    Attributes:
        file: the modelling file, `modeling_deepseek_v3`.
        prefix: what its classes' names begin with.
        classes: today's class: its name then, or a `torch.nn` class.
        names: today's name of a module inside a layer: its name then.
        expert: class of one expert, and the names of its three Linears.
        rotary: class (and its bases) of the rotary embedding in each attention; empty where there was none.
        rotary_yarn: the same for YaRN's scaling, where it had a class of its own.
        model_rotary: whether the model holds a rotary embedding too.
        also_transformers: whether KTransformers can also run transformers' own classes.
    """

    file: str
    prefix: str
    classes: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    expert: tuple[str, tuple[str, ...]] = ("", _GATED)
    rotary: tuple[str, ...] = ()
    rotary_yarn: tuple[str, ...] = ()
    model_rotary: bool = False
    also_transformers: bool = False


def _deepseek(file: str, prefix: str, classes: Mapping[str, str]) -> Family:
    plain = f"{file}.{prefix}RotaryEmbedding"
    return Family(
        file, prefix, classes, expert=(f"{prefix}MLP", _GATED), rotary=(plain,),
        rotary_yarn=(f"{file}.{prefix}YarnRotaryEmbedding", plain),
    )  # fmt: skip


FAMILIES: Mapping[str, Family] = {
    "deepseek_v2": _deepseek(
        "modeling_deepseek", "DeepseekV2",
        {
            "DeepseekV2Moe": "DeepseekV2MoE", "DeepseekV2TopkRouter": "MoEGate",
            "DeepseekV2Experts": "torch.nn.ModuleList",
        },
    ),
    "deepseek_v3": _deepseek(
        "modeling_deepseek_v3", "DeepseekV3",
        {"DeepseekV3TopkRouter": "MoEGate", "DeepseekV3Experts": "torch.nn.ModuleList"},
    ),
    "mixtral": Family(
        "modeling_mixtral", "Mixtral",
        {"MixtralTopKRouter": "torch.nn.Linear", "MixtralExperts": "torch.nn.ModuleList"},
        names={"mlp": "block_sparse_moe"},
        expert=("MixtralBlockSparseTop2MLP", ("w1", "w2", "w3")),
        rotary=("modeling_mixtral.MixtralRotaryEmbedding",),
    ),
    "qwen2_moe": Family(
        "modeling_qwen2_moe", "Qwen2Moe",
        {"Qwen2MoeTopKRouter": "torch.nn.Linear", "Qwen2MoeExperts": "torch.nn.ModuleList"},
        expert=("Qwen2MoeMLP", _GATED),
        rotary=("modeling_qwen2_moe.Qwen2MoeRotaryEmbedding",),
    ),
    "qwen3_moe": Family(
        "modeling_qwen3_moe", "Qwen3Moe",
        {"Qwen3MoeTopKRouter": "torch.nn.Linear", "Qwen3MoeExperts": "torch.nn.ModuleList"},
        expert=("Qwen3MoeMLP", _GATED),
        rotary=("modeling_qwen2_moe.Qwen2MoeRotaryEmbedding",),
        model_rotary=True, also_transformers=True,
    ),
    "glm4_moe": Family(
        "modeling_glm4_moe", "Glm4Moe", {"Glm4MoeExperts": "torch.nn.ModuleList"},
        expert=("Glm4MoeMLP", _GATED), model_rotary=True, also_transformers=True,
    ),
    "llama": Family(
        "modeling_llama", "Llama", rotary=("modeling_llama.LlamaRotaryEmbedding",), model_rotary=True
    ),
}  # fmt: skip
"""By `model_type` of the configuration. Architectures that are not here are taken as transformers builds them."""

ROTARY = "rotary embeddings hold no weights: ktc computes them where they are used"


@dataclass(frozen=True, slots=True)
class OldModule:
    """A module as KTransformers saw it.

    Attributes:
        name: its dotted name then, "" for the root.
        classes: its class and bases as dotted paths, most derived first.
        site: name of the module that does its work today; None if there is none.
        holds: whether it held parameters of its own.
        gone: why there is nothing to place for it; "" where there is.
    """

    name: str
    classes: tuple[str, ...]
    site: str | None
    holds: bool
    gone: str = ""


class OldModel:
    """The tree of a model, walked from the root as the injection walks it.

    Args:
        model: the model on the meta device.
        model_type: of its configuration.

    Attributes:
        family: what differs from today, None for an architecture without modelling file of KTransformers'.
        renamed: today's module names by the name they had, where the two differ.
    """

    def __init__(self, model: nn.Module, model_type: str) -> None:
        self.family = FAMILIES.get(model_type)
        self.root = OldModule("", self._classes(model), "", _holds(model))
        self.renamed: dict[str, str] = {}
        self._children: dict[str, list[OldModule]] = {}
        self._experts: dict[str, int] = {}
        self._yarn = _rope_type(model) == "yarn"
        self._grow(model, self.root)

    def children(self, module: OldModule) -> Iterator[OldModule]:
        """The modules directly inside one, in order. Those of one expert each are made when asked for."""
        yield from self._children.get(module.name, ())
        count = self._experts.get(module.name)
        if count is not None:
            for index in range(count):
                yield self.expert(module, index)
        elif module.name.rpartition(".")[0] in self._experts:
            yield from self._inside_expert(module)

    def expert(self, experts: OldModule, index: int) -> OldModule:
        """One expert of a list of them."""
        family = self._known()
        classes = (f"ktransformers.models.{family.file}.{family.expert[0]}", _MODULE)
        return OldModule(f"{experts.name}.{index}", classes, experts.site, False)

    def is_experts(self, module: OldModule) -> bool:
        """Whether it was the list of a block's experts."""
        return module.name in self._experts

    def walk(self) -> Iterator[OldModule]:
        """Every module, of the experts of one block the first only."""
        pending = [self.root]
        while pending:
            module = pending.pop()
            yield module
            inside = [self.expert(module, 0)] if self.is_experts(module) else list(self.children(module))
            pending += reversed(inside)

    def _known(self) -> Family:
        if self.family is None:
            raise ValueError("only families with a modelling file have experts that were modules")
        return self.family

    def _inside_expert(self, expert: OldModule) -> Iterator[OldModule]:
        for name in self._known().expert[1]:
            classes = ("torch.nn.Linear", _MODULE)
            yield OldModule(f"{expert.name}.{name}", classes, expert.site, True)
        yield OldModule(f"{expert.name}.act_fn", ("torch.nn.SiLU", _MODULE), expert.site, False)

    def _grow(self, module: nn.Module, old: OldModule) -> None:
        found = self._children.setdefault(old.name, [])
        for name, child in module.named_children():
            site = f"{old.site}.{name}" if old.site else name
            if name == "rotary_emb" and self.family is not None and not self.family.model_rotary:
                continue
            then = name if self.family is None else self.family.names.get(name, name)
            made = OldModule(
                f"{old.name}.{then}" if old.name else then, self._classes(child), site, _holds(child),
                ROTARY if name == "rotary_emb" else "",
            )  # fmt: skip
            if made.name != site:
                self.renamed[made.name] = site
            found.append(made)
            if self.family is not None and made.classes[0] == "torch.nn.ModuleList" and _stacked(child):
                self._experts[made.name] = next(iter(child.parameters())).shape[0]
                continue
            self._grow(child, made)
            if name == "self_attn" and self.family is not None and self.family.rotary:
                self._children[made.name].append(self._rotary(made, self.family))

    def _rotary(self, attention: OldModule, family: Family) -> OldModule:
        names = family.rotary_yarn if self._yarn and family.rotary_yarn else family.rotary
        classes = (*(f"ktransformers.models.{name}" for name in names), _MODULE)
        return OldModule(f"{attention.name}.rotary_emb", classes, None, False, ROTARY)

    def _classes(self, module: nn.Module) -> tuple[str, ...]:
        found: list[str] = []
        for kind in type(module).__mro__:
            if kind is object:
                continue
            path, family = _path(kind), self.family
            if family is not None and path.startswith("transformers.models."):
                then = family.classes.get(kind.__name__, kind.__name__)
                own = then if then.startswith("torch.") else f"ktransformers.models.{family.file}.{then}"
                found.append(own)
                if not family.also_transformers or own.startswith("torch."):
                    continue
            found.append("torch.nn.SiLU" if kind.__name__ == "SiLUActivation" else path)
        return tuple(dict.fromkeys(found))


def _path(kind: type) -> str:
    """The dotted path of a class, classes of torch.nn by their public name."""
    if kind.__module__.startswith("torch.nn.modules"):
        return f"torch.nn.{kind.__name__}"
    return f"{kind.__module__}.{kind.__name__}"


def _holds(module: nn.Module) -> bool:
    return any(parameter is not None for parameter in module._parameters.values())


def _stacked(module: nn.Module) -> bool:
    """Whether it holds the weights of all experts of a block in one tensor each."""
    return any(p is not None and p.dim() == 3 for p in module._parameters.values())


def _rope_type(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(settings.get("rope_type") or settings.get("type") or "") if isinstance(settings, dict) else ""

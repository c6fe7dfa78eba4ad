"""Short selectors: each must name what it has to, and nothing else."""

from __future__ import annotations

import random

import pytest
from support.architectures import tiny_config

from ktc.capture import meta_model, module_sites
from ktc.import_yaml.selectors import Coverer

SITES = module_sites(meta_model(tiny_config("deepseek_v3", 6)))
COVER = Coverer(SITES)
NAMES = [site.name for site in SITES]


def layers(*numbers: int, path: str = "") -> set[str]:
    return {f"model.layers.{n}{path}" for n in numbers}


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (layers(*range(6)), "model.layers[*]"),
        (layers(3, 4, 5), "model.layers[3..]"),
        (layers(0, 1), "model.layers[..1]"),
        (layers(2), "model.layers[2]"),
        (layers(1, 2, 4), "model.layers[1..2] or model.layers[4]"),
        (layers(1, 2, 3, 4, 5, path=".mlp.experts"), "model.layers[*].mlp.experts"),
        (layers(2, 3, path=".mlp.experts"), "model.layers[2..3].mlp.experts"),
        ({"model.norm", "lm_head"}, "model.norm or lm_head"),
        ({s.name for s in SITES if s.classes[0] == "Linear"}, "**: Linear"),
    ],
)
def test_what_people_write(wanted: set[str], text: str) -> None:
    assert COVER.cover(wanted) == text
    assert COVER.matched(text) == wanted


def test_globs_and_classes_inside_a_range() -> None:
    gated = {f"model.layers.{n}.mlp.shared_experts.{p}_proj" for n in (2, 3) for p in ("gate", "up", "down")}
    assert COVER.cover(gated) == "model.layers[2..3].mlp.shared_experts.*_proj"
    linears = {s.name for s in SITES if s.classes[0] == "Linear" and s.layer in (4, 5)}
    assert COVER.cover(linears) == "model.layers[4..].**: Linear"
    but = {name for name in linears if not name.endswith("kv_b_proj")}
    found = COVER.cover(but)
    assert found == "(model.layers[4..].**: Linear and not model.layers[4..].self_attn.kv_b_proj)"


def test_what_is_free_may_be_named_too() -> None:
    wanted = layers(1, 3, path=".mlp.experts")
    assert COVER.cover(wanted, layers(2, path=".mlp.experts")) == "model.layers[..3].mlp.experts"


@pytest.mark.parametrize("seed", range(40))
def test_any_set_is_named_exactly(seed: int) -> None:
    chance = random.Random(seed)
    wanted = set(chance.sample(NAMES[1:], chance.randint(1, 40)))
    free = set(chance.sample(NAMES[1:], chance.randint(0, 40)))
    assert COVER.matched(COVER.cover(wanted)) == wanted
    assert wanted <= COVER.matched(COVER.cover(wanted, free)) <= wanted | free

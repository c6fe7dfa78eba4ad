"""Compiles small programs for tiny models that are in memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ktc.grammar.loading import load
from support.tiny_models import tiny_model
from transformers import PreTrainedModel

from ktc.compiler import Compiled, Options, compile_language_model
from ktc.weights.state_dict import StateDictSource

HOST = "device host = cpu (memory = 1GiB)\nrule everything { match ** place host }\n"


@functools.cache
def tiny(name: str) -> PreTrainedModel:
    """The tiny model of an architecture; made once, and left as it is."""
    return tiny_model(name)


def compile_for(
    model: PreTrainedModel, text: str, params: Mapping[str, Any] | None = None, weights: bool = True
) -> Compiled:
    """Compiles a program for a model, with HOST in front of it; without `weights`, to plan only."""
    source = StateDictSource(model.state_dict(), model.config) if weights else None
    rules = load(HOST + text + "\n", text=True, params=params)
    return compile_language_model(rules, model.config, source, Options(planning=not weights))

"""caches: the shapes of caches are those of the ops that write them, and ops that disagree are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ktc.passes.caches import Caches, retyped
from ktc.passes.edit import call
from ktc.passes.ops import op_name
from ktc.passes.verify import InvalidGraph
from support.compiling import compile_for, tiny

from ktc.capture import capture_language_model, meta_model


def test_without_rewrites_the_caches_stay_as_captured():
    context = compile_for(tiny("gemma3_text"), "").context
    assert context.caches == context.captured.caches


def test_nodes_that_read_a_cache_take_its_new_shape():
    done = compile_for(tiny("deepseek_v2"), 'include "std/mla.kt"\n')
    context, config = done.context, tiny("deepseek_v2").config
    assert context.caches != context.captured.caches
    shapes = {
        str(node.target): tuple(node.meta["val"].shape[1:])
        for node in context.phases["step"].graph.nodes
        if node.op == "get_attr" and str(node.target).startswith("kv.")
    }
    assert shapes["kv.1.key"] == (1, 32, config.kv_lora_rank)
    assert shapes["kv.1.value"] == (1, 32, config.qk_rope_head_dim)


def test_two_ops_that_disagree_about_a_cache():
    """The second layer's attention, made to write the first one's cache with keys of twice the length."""
    model = tiny("llama")
    context = compile_for(model, "").context
    gm = capture_language_model(meta_model(model.config, torch.float32)).module
    first, second = (node for node in gm.graph.nodes if op_name(node) == "kt.attention")
    with gm.graph.inserting_before(second):
        double = call(gm.graph, torch.cat, ([second.args[1], second.args[1]], -1))
        caches = [gm.graph.create_node("get_attr", first.args[i].target) for i in (3, 4)]
    for cache, i in zip(caches, (3, 4), strict=True):
        cache.meta = dict(first.args[i].meta)
    second.args = (second.args[0], double, second.args[2], *caches, *second.args[5:])
    with pytest.raises(InvalidGraph, match=r"disagree about the cache kv\.0\.key"):
        retyped(gm, context)


def test_a_cache_that_nothing_writes_and_a_pair_that_is_none():
    model = tiny("llama")
    context = compile_for(model, "").context
    gm = capture_language_model(meta_model(model.config, torch.float32)).module
    extra = replace(context.caches[0], key="kv.9.key", value="kv.9.value")
    with pytest.raises(InvalidGraph, match=r"no op writes the cache kv\.9\.key"):
        retyped(gm, replace(context, caches=(*context.caches, extra)))
    crossed = replace(context.caches[0], value="kv.1.value")
    with pytest.raises(InvalidGraph, match="no pair of caches"):
        Caches()(gm, replace(context, caches=(crossed, context.caches[1])))

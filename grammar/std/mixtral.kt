# Mixtral 8x7B and 8x22B: Llama's attention, and eight experts behind a router in every layer.
#
# model.embed_tokens
# model.layers[*].self_attn.{q,k,v,o}_proj
#                .mlp.gate (the router), .mlp.experts (gate_up_proj and down_proj of all experts in one module)
#                .input_layernorm, .post_attention_layernorm
# model.norm, lm_head
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model MixtralForCausalLM
#   include "std/mixtral.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule experts    { match @experts quant q4_k kernel cpu.experts }
#   rule weights    { match @linears quant q8_0 }
include "std/decoder.kt"
include "std/fusions.kt"

let experts = match model.layers[*].mlp.experts
let router = match model.layers[*].mlp.gate
let linears = match model.layers[*].self_attn.*_proj
let norms = match **.*_layernorm or model.norm

# Qwen3 mixture of experts (30B-A3B, 235B-A22B): Qwen3's attention, and fused experts behind a router.
#
# model.embed_tokens
# model.layers[*].self_attn.{q,k,v,o}_proj, .self_attn.{q,k}_norm
#                .mlp.gate (the router), .mlp.experts (gate_up_proj and down_proj of all experts in one module)
#                .input_layernorm, .post_attention_layernorm
# model.norm, lm_head
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model Qwen3MoeForCausalLM
#   include "std/qwen3_moe.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule experts    { match @experts quant q4_k kernel cpu.experts }
#   rule weights    { match @linears quant q8_0 }
include "std/decoder.kt"
include "std/fusions.kt"

let experts = match model.layers[*].mlp.experts
let router = match model.layers[*].mlp.gate
let linears = match model.layers[*].self_attn.*_proj
let norms = match **.*_layernorm or **.*_norm or model.norm

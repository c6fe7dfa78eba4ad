# Qwen2 mixture of experts (57B-A14B, Qwen1.5-MoE): Qwen2's attention with biases on q, k and v, routed experts, and one
# shared expert that a gate of its own scales for every token.
#
# model.embed_tokens
# model.layers[*].self_attn.{q,k,v,o}_proj (q, k, v with biases)
#                .mlp.gate (the router), .mlp.experts (gate_up_proj and down_proj of all experts in one module)
#                .mlp.shared_expert.{gate,up,down}_proj, .mlp.shared_expert_gate (one row)
#                .mlp.{gate,up,down}_proj in layers without experts (`config.mlp_only_layers`)
#                .input_layernorm, .post_attention_layernorm
# model.norm, lm_head
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model Qwen2MoeForCausalLM
#   include "std/qwen2_moe.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule experts    { match @experts quant q4_k kernel cpu.experts }
#   rule weights    { match @linears quant q8_0 }
include "std/decoder.kt"
include "std/fusions.kt"

let experts = match model.layers[*].mlp.experts
let router = match model.layers[*].mlp.gate
let shared_experts = match model.layers[*].mlp.shared_expert
let shared_gate = match model.layers[*].mlp.shared_expert_gate
let linears = match model.layers[*].self_attn.*_proj
  or model.layers[*].mlp.shared_expert.*_proj
  or model.layers[*].mlp.*_proj
let norms = match **.*_layernorm or model.norm

# DeepSeek-V3 and R1: latent attention (absorbed by std/mla.kt), three dense layers, then 256 routed experts, eight of them a
# token, chosen by sigmoid scores with a correction bias from four of eight groups, beside a shared one.
#
# model.embed_tokens
# model.layers[*].self_attn.q_a_proj, .q_a_layernorm, .q_b_proj
#                .self_attn.kv_a_proj_with_mqa, .kv_a_layernorm, .kv_b_proj, .o_proj
#                .mlp.{gate,up,down}_proj in the first `config.first_k_dense_replace` layers
#                .mlp.gate (the router), .mlp.experts (gate_up_proj and down_proj of all experts in one module),
#                .mlp.shared_experts.{gate,up,down}_proj in the others
#                .input_layernorm, .post_attention_layernorm
# model.norm, lm_head
# kv_b_proj stands apart from @linears as @kv_b: latent attention reads it in rows of 128, which the K formats cannot
# hold and q8_0 can.
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model DeepseekV3ForCausalLM
#   include "std/deepseek_v3.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule experts    { match @experts quant q4_k kernel cpu.experts }
#   rule weights    { match @linears or @kv_b quant q8_0 }
include "std/decoder.kt"
include "std/fusions.kt"
include "std/mla.kt"

let experts = match model.layers[*].mlp.experts
let router = match model.layers[*].mlp.gate
let shared_experts = match model.layers[*].mlp.shared_experts
let dense = match model.layers[*].mlp.*_proj
let kv_b = match model.layers[*].self_attn.kv_b_proj
let attention_linears = match model.layers[*].self_attn.*_proj and not @kv_b
  or model.layers[*].self_attn.kv_a_proj_with_mqa
let linears = match @attention_linears or @dense or model.layers[*].mlp.shared_experts.*_proj
let norms = match **.*_layernorm or model.norm

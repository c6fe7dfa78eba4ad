# GLM-4.5 and GLM-4.5-Air: attention with biases on q, k and v (and, in the large model, norms on q and k), dense layers
# first, then routed experts chosen with a correction bias, beside shared ones.
#
# model.embed_tokens
# model.layers[*].self_attn.{q,k,v,o}_proj, .self_attn.{q,k}_norm (where `config.use_qk_norm`)
#                .mlp.{gate,up,down}_proj in the first `config.first_k_dense_replace` layers
#                .mlp.gate (the router), .mlp.experts (gate_up_proj and down_proj of all experts in one module),
#                .mlp.shared_experts.{gate,up,down}_proj in the others
#                .input_layernorm, .post_attention_layernorm
# model.norm, lm_head
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model Glm4MoeForCausalLM
#   include "std/glm4_moe.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule experts    { match @experts quant q4_k kernel cpu.experts }
#   rule weights    { match @linears quant q8_0 }
include "std/decoder.kt"
include "std/fusions.kt"

let experts = match model.layers[*].mlp.experts
let router = match model.layers[*].mlp.gate
let shared_experts = match model.layers[*].mlp.shared_experts
let dense = match model.layers[*].mlp.*_proj
let linears = match model.layers[*].self_attn.*_proj
  or model.layers[*].mlp.shared_experts.*_proj
  or @dense
let norms = match **.*_layernorm or **.*_norm or model.norm

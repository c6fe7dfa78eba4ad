# Qwen3 (dense): no biases; q and k are normalised head by head before the rotation.
#
# model.embed_tokens
# model.layers[*].self_attn.{q,k,v,o}_proj, .self_attn.{q,k}_norm, .mlp.{gate,up,down}_proj
#                .input_layernorm, .post_attention_layernorm
# model.norm, lm_head
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model Qwen3ForCausalLM
#   include "std/qwen3.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule weights    { match @linears quant q4_k }
include "std/decoder.kt"
include "std/fusions.kt"

let mlp = match model.layers[*].mlp
let linears = match model.layers[*].self_attn.*_proj or model.layers[*].mlp.*_proj
let norms = match **.*_layernorm or **.*_norm or model.norm

# Qwen2 and Qwen2.5 (dense): Llama's modules, with biases on q, k and v.
#
# model.embed_tokens
# model.layers[*].self_attn.{q,k,v,o}_proj (q, k, v with biases), .mlp.{gate,up,down}_proj
#                .input_layernorm, .post_attention_layernorm
# model.norm, lm_head
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model Qwen2ForCausalLM
#   include "std/qwen2.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule weights    { match @linears quant q4_k }
include "std/decoder.kt"
include "std/fusions.kt"

let mlp = match model.layers[*].mlp
let linears = match model.layers[*].self_attn.*_proj or model.layers[*].mlp.*_proj
let norms = match **.*_layernorm or model.norm

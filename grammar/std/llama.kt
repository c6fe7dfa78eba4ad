# Llama 2 and 3, and what shares their class: SmolLM2, TinyLlama, many Mistral-like models.
#
# model.embed_tokens
# model.layers[*].self_attn.{q,k,v,o}_proj, .mlp.{gate,up,down}_proj
#                .input_layernorm, .post_attention_layernorm
# model.norm, lm_head (its weight is the embedding's where the model ties them)
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model LlamaForCausalLM
#   include "std/llama.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule weights    { match @linears quant q4_k }
include "std/decoder.kt"
include "std/fusions.kt"

let mlp = match model.layers[*].mlp
let linears = match model.layers[*].self_attn.*_proj or model.layers[*].mlp.*_proj
let norms = match **.*_layernorm or model.norm

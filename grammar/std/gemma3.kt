# Gemma 3, the text models: norms around both blocks, sliding and full attention in turns.
#
# model.embed_tokens (scaled by the square root of the hidden size)
# model.layers[*].self_attn.{q,k,v,o}_proj, .self_attn.{q,k}_norm, .mlp.{gate,up,down}_proj
#                .input_layernorm, .post_attention_layernorm,
#                .pre_feedforward_layernorm, .post_feedforward_layernorm
# model.norm, lm_head (its weight is the embedding's)
# Layers with a sliding window: `where config.layer_types[layer] == "sliding_attention"`.
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model Gemma3ForCausalLM
#   include "std/gemma3.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule weights    { match @linears quant q4_k }
include "std/decoder.kt"
include "std/fusions.kt"

let mlp = match model.layers[*].mlp
let linears = match model.layers[*].self_attn.*_proj or model.layers[*].mlp.*_proj
let norms = match **.*_layernorm or **.*_norm or model.norm

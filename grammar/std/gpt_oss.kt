# GPT-OSS (20B, 120B): sliding and full attention in turns with a sink logit a head, biases everywhere, and experts with a
# clamped activation, which their files hold in MXFP4.
#
# model.embed_tokens
# model.layers[*].self_attn.{q,k,v,o}_proj (with biases), .self_attn (its sinks)
#                .mlp.router (with a bias), .mlp.experts (gate_up_proj and down_proj of all experts, with biases)
#                .input_layernorm, .post_attention_layernorm
# model.norm, lm_head
# Layers with a sliding window: `where config.layer_types[layer] == "sliding_attention"`.
# Without a `quant` rule the experts keep MXFP4 as they lie in the file. The hidden size, 2880, is no multiple of 256: the K
# formats cannot hold these weights, q8_0, q4_0 and mxfp4 can.
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model GptOssForCausalLM
#   include "std/gpt_oss.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule experts    { match @experts kernel cpu.experts }
#   rule weights    { match @linears quant q8_0 }
include "std/decoder.kt"
include "std/fusions.kt"

let experts = match model.layers[*].mlp.experts
let router = match model.layers[*].mlp.router
let linears = match model.layers[*].self_attn.*_proj
let norms = match **.*_layernorm or model.norm

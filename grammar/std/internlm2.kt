# InternLM2 and InternLM2.5: Llama's modules. transformers has no class of its own for them, and ktc runs their weights as
# LlamaForCausalLM; q, k and v, which their files hold in one tensor, are taken apart when they are read.
#
# model.embed_tokens
# model.layers[*].self_attn.{q,k,v,o}_proj, .mlp.{gate,up,down}_proj
#                .input_layernorm, .post_attention_layernorm
# model.norm, lm_head
#
# This library names the modules and includes the fusions; devices and `place` rules are yours:
#
#   model LlamaForCausalLM
#   include "std/internlm2.kt"
#   device host = cpu
#   rule everything { match ** place host }
#   rule weights    { match @linears quant q4_k }
include "std/llama.kt"

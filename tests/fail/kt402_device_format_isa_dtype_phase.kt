# model: tiny-llama
model LlamaForCausalLM
import fail_kernels
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule device { match model.layers[0].self_attn.q_proj kernel fail.gpu_linear }
rule format { match model.layers[0].self_attn.k_proj quant q8_0 kernel fail.q4_k_linear }
rule isa { match model.layers[0].self_attn.v_proj kernel fail.amx_linear }
rule dtype { match model.layers[0].mlp.up_proj kernel fail.bf16_linear }
rule phase { match model.layers[0].mlp.down_proj kernel fail.decode_linear }

# model: tiny-llama
model Qwen3ForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }

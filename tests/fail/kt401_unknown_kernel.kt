# model: tiny-llama
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule linears { match **: Linear kernel cpu.lineer }

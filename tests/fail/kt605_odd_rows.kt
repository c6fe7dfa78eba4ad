# model: odd-rows
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule linears { match **: Linear quant q4_k }

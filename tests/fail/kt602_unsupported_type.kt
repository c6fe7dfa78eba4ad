# model: unknown-type
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }

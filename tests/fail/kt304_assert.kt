# model: tiny-llama
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
assert peak(host) <= 1MiB, "use a smaller model"

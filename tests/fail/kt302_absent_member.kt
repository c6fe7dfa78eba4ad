# model: tiny-llama
model LlamaForCausalLM

param devices: int = 2

device host = cpu (memory = 1GiB)
device gpus = cuda:60..67 (memory = 24GiB)
rule everything { match ** place host }
rule layers { match model.layers[*] where layer >= layers - devices + 1 place gpus[layer * devices // layers] }
assert peak(gpus) <= memory(gpus)

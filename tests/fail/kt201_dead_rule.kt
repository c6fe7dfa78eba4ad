# model: tiny-llama
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule gates { match model.layers[*].mlp.gate_project kernel torch.linear }

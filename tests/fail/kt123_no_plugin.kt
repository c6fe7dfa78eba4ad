# model: tiny-llama
model LlamaForCausalLM

import no_such_kernels
device host = cpu (memory = 1GiB)
rule everything { match ** place host }

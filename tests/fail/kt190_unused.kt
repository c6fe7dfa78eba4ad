# ok
model LlamaForCausalLM
device host = cpu
device spare = cpu
param context: int = 8192 "tokens"
let experts = match **.experts
rule everything { match ** place host }

model LlamaForCausalLM from "models/llama
device host = cpu

# model: tiny-llama
model LlamaForCausalLM

device host = cpu (memory = 1GiB)
device near = cpu (memory = 1GiB)
rule everything { match ** place host }
rule activations { match model.layers[*].mlp.act_fn place near expect layers }
rewrite gated {
  pattern { y = kt.mul(kt.silu(gate), up) }
  replace { y = kt.silu_mul(gate, up) }
}

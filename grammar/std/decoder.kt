# The modules that every decoder of the Llama line has under the same names; the family libraries include it.
let decoder = match model.layers[*]
let attention = match model.layers[*].self_attn
let qkv = match model.layers[*].self_attn.q_proj
  or model.layers[*].self_attn.k_proj
  or model.layers[*].self_attn.v_proj
let embedding = match model.embed_tokens
let head = match lm_head

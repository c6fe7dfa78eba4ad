# model: tiny-deepseek
model DeepseekV3ForCausalLM
include "std/decoder.kt"
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule attention { match @attention kernel torch.mla_attention }

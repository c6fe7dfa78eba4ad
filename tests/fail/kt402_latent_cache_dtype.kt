# model: tiny-deepseek
model DeepseekV3ForCausalLM
import fail_kernels
include "std/deepseek_v3.kt"
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule attention { match @attention kernel fail.f32_latents cache paged(dtype = f16, tokens = 64) }

device gpus = cuda:0..3
rule head { match lm_head place gpus[0 }

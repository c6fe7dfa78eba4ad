device gpus = cuda:3..0
rule some { match model.layers[7..3] quant q8_0 expect 5..2 }

rule some { match model.layers[] quant q8_0 }

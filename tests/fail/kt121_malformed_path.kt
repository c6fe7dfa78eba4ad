rule a { match **[3].mlp quant q8_0 }
rule b { match model.**.**.norm quant q8_0 }

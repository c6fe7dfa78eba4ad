rule a { match **: Linear quant q4k }
rule b { match **: Linear quant q4_k(group = 32) }
rule c { match **: Linear quant 4 }

# define: weights=q4k
param weights: name = q4_k
rule linears { match **: Linear quant weights }

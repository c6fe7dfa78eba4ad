device host = cpu
phase bulk = tokens >= 512
rule all { match ** place host on bulc { place host } }

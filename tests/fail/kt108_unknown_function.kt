device host = cpu
rule all { match ** place host }
assert peek(host) < 4GiB

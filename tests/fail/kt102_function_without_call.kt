device host = cpu
rule all { match ** place host }
assert peak < 4GiB

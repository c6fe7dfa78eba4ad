device host = cpu
rule all { match ** place host }
assert peak() < 4GiB
assert peak(4) < 4GiB
assert len(host, host) == 1

device host = cpu
rule all { match ** where peak(host) < 4GiB place host }

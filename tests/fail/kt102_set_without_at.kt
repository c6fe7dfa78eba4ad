device host = cpu
let experts = match **.experts
rule big { match ** place host }
assert bytes(experts) < 4GiB

device host = cpu
let experts = match **.experts
rule experts { match @expert place host }

device host = cpu
param fast: bool = 1
let nothing = not 3
rule a { match ** where layer + 1 place host }
rule b { match ** where name < 3 place host }
rule c { match ** where dtype == 16 place host }
rule d { match ** where layer in 4 place host }
rule e { match lm_head place host expect "three" }

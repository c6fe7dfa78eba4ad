device host = cpu
param host: int = 3
rule everything { match ** place host }
rule everything { match lm_head place host }

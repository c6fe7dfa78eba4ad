device host = cpu
rule a { match ** place hots }
rule b { match lm_head place 3 }
rule c { match model.norm place auto(host, gpu) }

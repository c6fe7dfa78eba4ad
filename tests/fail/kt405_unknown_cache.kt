rule a { match **.self_attn cache pages(tokens = 4096) }
rule b { match **.self_attn cache paged(token = 4096) }
rule c { match **.self_attn cache paged(dtype = q2_k) }
rule d { match **.self_attn cache paged(tokens = "all") }

device host = cpu
rule middle { match ** where 3 < layer < 7 place host }

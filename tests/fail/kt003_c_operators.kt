device host = cpu
rule middle { match ** where layer > 3 && layer < 7 place host }

device host = cpu (memory: 4GiB)

rule one { match model..norm place host }

rule two { match ** place host }

rule three { match ** where layer = 3 place host }

param context: int 4096

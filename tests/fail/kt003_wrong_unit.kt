device host = cpu (memory = 24GB)

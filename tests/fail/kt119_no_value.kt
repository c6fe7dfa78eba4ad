param parts: int = 0
device host = cpu (memory = 4GiB // parts)
device gpus = cuda:0..1 (memory = [1GiB, 2GiB][2])

device a = cpu (memry = 4GiB)
device b = cpu (memory = 1GiB, reserve = 2GiB)
device c = cpu (threads = 0)
device d = cpu (4GiB)

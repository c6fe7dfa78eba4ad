rule linears { match **: Linear kernel cpu.linear(4, threads = 2, threads = 3) }

device gpu = cude:0

param layers: int = 3
phase decode = tokens == 1
let auto = 3

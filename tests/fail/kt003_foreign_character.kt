device host = cpu;
let half = 1 $ 2

let least = min(x: T[*, d], 3)
let most = max(2, 3)
